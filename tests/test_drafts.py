import errno
import io
import json
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from PIL import Image

from dopsd_app.config import ConfigError, load_preset, make_config
from dopsd_app.data import archive as archive_module
from dopsd_app.data.captions import advise
from dopsd_app.data.draft_file import DraftError
from dopsd_app.data.drafts import (
    check_draft,
    current_draft,
    default_drafts_dir,
    delete_draft,
    draft_config,
    draft_dataset,
    find_draft,
    is_new,
    list_drafts,
    new_draft,
    note_repairs,
    read_draft,
    remove_picture,
    remove_sources,
    set_caption,
    set_captions,
    set_focus,
    set_settings,
)
from dopsd_app.data.pictures import MAX_PICTURES, PicturesError, load_picture, read_examples
from dopsd_app.data.uploads import (
    EXAMPLES,
    MAX_FILES,
    MAX_PICTURE_BYTES,
    add_folder,
    add_pictures,
    add_sources,
    clone_run,
    list_examples,
    load_example,
)
from dopsd_app.jobs.runs import create_run
from tests.support.edits import save_pairs
from tests.support.pictures import make_picture

GPS = 0x8825  # the EXIF tag


@pytest.fixture
def draft(tmp_path):
    return new_draft(tmp_path / "drafts")


@pytest.fixture
def uploads(tmp_path):
    """Writes files that a person would upload, and returns their paths."""
    folder = tmp_path / "uploads"
    folder.mkdir()

    def write(**files):
        paths = []
        for name, content in files.items():
            path = folder / name.replace("_", ".")
            if isinstance(content, str):
                path.write_text(content, encoding="utf-8")
            elif isinstance(content, bytes):
                path.write_bytes(content)
            else:
                picture(content).save(path)
            paths.append(path)
        return paths

    return write


def picture(number, size=(64, 64)):
    """A picture that differs from those of other numbers."""
    return Image.new("RGB", size, (number % 256, 40, 200))


def fill(draft, uploads, count=4):
    draft = add_pictures(draft, uploads(**{f"p{n}_png": n for n in range(count)})).draft
    return set_captions(draft, {item.key: f"zorp {item.name}" for item in draft.items})


def names(draft):
    return [item.name for item in draft.items]


def captions(draft):
    return {item.name: item.caption for item in draft.items}


# Drafts


def test_a_new_draft_is_empty_and_asks_for_pictures(draft):
    assert draft.items == ()
    assert check_draft(draft) == {"": ("Pictures: 4 to 200 are needed, but this draft has 0. Add more.",)}
    assert draft_config(draft) == make_config(load_preset("pocket").settings)


def test_a_draft_is_new_until_anything_is_put_into_it(draft, uploads):
    assert is_new(draft)
    draft = set_settings(draft, trigger_word="zorp")
    assert not is_new(draft)
    draft = set_settings(draft, trigger_word=None)
    assert is_new(draft)
    draft = set_settings(draft, kind="style")
    assert not is_new(draft)


def test_the_current_draft_is_the_one_changed_last(tmp_path):
    first = current_draft(tmp_path / "drafts")
    assert current_draft(tmp_path / "drafts") == first
    second = new_draft(tmp_path / "drafts")
    assert current_draft(tmp_path / "drafts") == second
    first = set_settings(first, trigger_word="zorp")
    assert list_drafts(tmp_path / "drafts") == [first, second]
    assert current_draft(tmp_path / "drafts") == first


def test_two_tabs_that_open_at_once_get_the_same_draft(tmp_path):
    with ThreadPoolExecutor(4) as tabs:
        drafts = list(tabs.map(lambda _: current_draft(tmp_path / "drafts"), range(4)))
    assert len({draft.id for draft in drafts}) == 1


def test_a_draft_is_found_by_its_id_only(tmp_path, draft):
    assert find_draft(draft.path.parent, draft.id) == draft
    (tmp_path / "draft.json").write_text("{}")
    for wrong in ("", ".", "..", f"../drafts/{draft.id}", str(draft.path), draft.id[:-1]):
        with pytest.raises(DraftError, match="no longer there"):
            find_draft(draft.path.parent, wrong)


def test_a_deleted_draft_is_gone_and_nothing_brings_it_back(draft, uploads):
    draft = fill(draft, uploads)
    key = draft.items[0].key
    delete_draft(draft)
    assert list_drafts(draft.path.parent) == []
    for use in (
        lambda: read_draft(draft.path),
        lambda: set_caption(draft, key, "x"),
        lambda: set_settings(draft, steps=3),
    ):
        with pytest.raises(DraftError, match="no longer there"):
            use()
    assert [path.name for path in draft.path.parent.iterdir()] == [".lock"]


def test_a_damaged_draft_does_not_hide_the_others(tmp_path, draft):
    damaged = new_draft(draft.path.parent)
    (damaged.path / "draft.json").write_text("{half")
    assert current_draft(draft.path.parent) == draft


def test_the_folder_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("DOPSD_DRAFTS", str(tmp_path / "mine"))
    assert default_drafts_dir() == tmp_path / "mine"
    monkeypatch.delenv("DOPSD_DRAFTS")
    monkeypatch.chdir(tmp_path)
    assert default_drafts_dir() == tmp_path / "drafts"


# Uploads


def test_pictures_and_captions_find_each_other_in_any_order(draft, uploads):
    files = uploads(b_png=1, b_txt="one\ntwo\n", a_txt="waits")
    added = add_pictures(draft, files)
    draft = added.draft
    assert added.problems == ()
    assert added.notes == ()
    assert (captions(draft), draft.waiting) == ({"b.png": "one\ntwo"}, ("a.txt",))
    draft = add_pictures(draft, uploads(a_webp=2, c_jpg=3)).draft
    assert captions(draft) == {"b.png": "one\ntwo", "a.webp": "waits", "c.jpg": ""}
    assert draft.waiting == ()
    draft = add_pictures(draft, uploads(C_txt="late")).draft
    assert captions(draft)["c.jpg"] == "late"


def test_an_uploaded_caption_replaces_a_typed_one_and_says_so(draft, uploads):
    added = add_pictures(draft, uploads(a_png=1))
    draft = set_caption(added.draft, added.keys[0], "typed")
    added = add_pictures(draft, uploads(a_txt="uploaded"))
    assert added.notes == ("a.txt replaced the caption of a.png.",)
    draft = added.draft
    assert captions(draft) == {"a.png": "uploaded"}
    assert add_pictures(draft, uploads(a_txt="uploaded\n")).notes == ()


def test_pictures_of_one_upload_are_in_natural_order(draft, uploads):
    draft = add_pictures(draft, uploads(p10_png=10, p2_png=2, p1_png=1)).draft
    assert names(draft) == ["p1.png", "p2.png", "p10.png"]


def test_pictures_of_one_name_are_told_apart(tmp_path, draft, uploads):
    draft = add_pictures(draft, uploads(a_png=1)).draft
    draft = add_pictures(draft, uploads(a_png=2, a_txt="of the second")).draft
    assert captions(draft) == {"a.png": "", "a (2).png": "of the second"}  # which came with it
    added = add_pictures(draft, uploads(a_txt="of whom?"))
    assert added.problems == (
        "a.txt was left out: it may be of a.png or a (2).png. Name its file after the whole picture:"
        " a.png.txt.",
    )
    assert captions(added.draft) == captions(draft)
    draft = add_pictures(draft, uploads(a_png_txt="of the first")).draft
    assert captions(draft) == {"a.png": "of the first", "a (2).png": "of the second"}


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("form", ["files", "table"])
def test_captions_find_their_pictures_by_the_whole_name(draft, uploads, form, apart):
    written = uploads(a_png_txt="of png", a_jpg_txt="of jpg")
    if form == "table":
        rows = [{"file_name": "mine/a.png", "text": "of png"}, {"file_name": "mine/a.jpg", "text": "of jpg"}]
        written = uploads(metadata_jsonl="\n".join(map(json.dumps, rows)))
    pictures = uploads(a_png=1, a_jpg=2)
    if apart:
        draft, written = add_pictures(draft, written).draft, []
        assert len(draft.waiting) == 2
    added = add_pictures(draft, [*pictures, *written])
    assert captions(added.draft) == {"a.jpg": "of jpg", "a.png": "of png"}
    assert (added.problems, added.notes, added.draft.waiting) == ((), (), ())


def test_what_is_left_over_by_the_whole_names_goes_by_the_stem(draft, uploads):
    added = add_pictures(draft, uploads(a_png=1, a_jpg=2, a_png_txt="of png", a_txt="of the other"))
    assert captions(added.draft) == {"a.jpg": "of the other", "a.png": "of png"}
    files = uploads(b_png=30, b_jpg=90, b_png_json='{"caption": "of png"}', b_jpg_txt="of jpg")
    added = add_pictures(draft, files)
    assert added.problems == ()
    assert list(captions(added.draft).values())[2:] == ["of jpg", "of png"]


def test_a_caption_that_waits_is_given_to_none_of_two(draft, uploads):
    draft = add_pictures(draft, uploads(a_txt="waits")).draft
    added = add_pictures(draft, uploads(a_png=1, a_jpg=2))
    assert set(captions(added.draft).values()) == {""}
    assert "it may be of a.jpg or a.png" in added.problems[0] and added.draft.waiting == ()


def test_metadata_gives_captions_to_pictures_wherever_they_were(draft, uploads):
    lines = [
        json.dumps({"file_name": "train/a.png", "text": "a\nline"}),
        json.dumps({"file_name": "b.png", "caption": ["one", "two"]}),
        "{half",
        json.dumps({"file_name": "c.png", "text": 5}),
        json.dumps({"text": "nobody"}),
    ]
    added = add_pictures(draft, uploads(a_png=1, b_png=2, metadata_jsonl="\n".join(lines)))
    draft = added.draft
    assert captions(draft) == {"a.png": "a line", "b.png": "one\ntwo"}
    assert added.problems == (
        "metadata.jsonl is not valid JSON in line 3. Its other lines were read.",
        "Line 4 of metadata.jsonl has no caption that is text.",
        'Line 5 of metadata.jsonl names no picture. Give its file name as "file_name".',
    )


def test_prompts_become_those_of_the_previews(draft, uploads):
    draft = add_pictures(draft, uploads(prompts_txt="\n".join(["one", "", "two", *"abcdefghij"]))).draft
    assert draft_config(draft).preview_prompts == ("one", "two", *"abcdef")


def test_prompts_of_previews_have_the_trigger_word(draft, uploads):
    draft = add_pictures(draft, uploads(prompts_txt="[trigger] at home")).draft
    draft = set_settings(draft, trigger_word="zorp")
    assert draft_config(draft).preview_prompts == ("zorp at home",)
    assert draft_config(set_settings(draft, trigger_word="grib")).preview_prompts == ("grib at home",)


def test_what_cannot_be_used_is_refused_by_name(tmp_path, draft, uploads):
    heavy = tmp_path / "heavy.png"
    with heavy.open("wb") as file:
        file.truncate(MAX_PICTURE_BYTES + 1)
    files = uploads(a_png="I am text", b_pdf=b"%PDF-1.7", c_txt=b"\0", d_jpg=4)
    added = add_pictures(draft, [*files, heavy, tmp_path])
    draft = added.draft
    assert added.problems == (
        "heavy.png is larger than 25 MB. Save it as JPEG, or scale it down.",
        f"{tmp_path.name} is no file.",
        "b.pdf is neither a picture nor a caption file (.txt). It was left out.",
        "c.txt is no text that can be read. Save it as plain text in UTF-8.",
        "a.png cannot be read as a picture. Save it again as JPEG or PNG, or remove it.",
    )
    assert names(draft) == ["d.jpg"]


def test_a_readme_and_a_backup_are_left_out_with_a_note(draft, uploads):
    added = add_pictures(draft, uploads(README_md="x", LICENSE_txt="x", a_png_bak=png(1)))
    assert (added.problems, added.draft.items, added.draft.waiting) == ((), (), ())
    assert [note.split(" is ")[0] for note in added.notes] == ["a.png.bak", "LICENSE.txt", "README.md"]


def test_captions_of_other_programs_find_their_pictures(draft, uploads):
    files = uploads(**{f"{name}_png": number for number, name in enumerate("abcde")})
    files += uploads(a_caption="one", b_png_txt="two", c_json='{"caption": "three"}', d_json='{"seed": 4}')
    files += uploads(metadata_csv="file_name,text\nd.png,four\n", e_json='"another"', e_txt="five")
    added = add_pictures(draft, files)
    assert list(captions(added.draft).values()) == ["one", "two", "three", "four", "five"]
    assert added.problems == ()
    assert added.notes == ("d.json holds no caption under “caption” or “text”. It was left out.",)


# A zip


def zipped(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def png(number):
    content = io.BytesIO()
    picture(number).save(content, "PNG")
    return content.getvalue()


def test_a_zip_is_read_as_a_folder_is(draft, tmp_path):
    files = {"mine/10_zorp/1.png": png(1), "mine/10_zorp/1.txt": "zorp one", "mine/10_zorp/图.png": png(2)}
    files |= {"__MACOSX/mine/._1.png": b"x", "mine/.DS_Store": b"x", "mine/README.md": "x"}
    added = add_pictures(draft, [zipped(tmp_path / "a.zip", files)])
    assert captions(added.draft) == {"1.png": "zorp one", "图.png": ""}
    assert added.draft.trigger_word == "zorp"
    assert (added.problems, len(added.keys)) == ((), 2)
    assert list(added.draft.path.glob("tmp*")) == []


def test_reading_many_pictures_is_counted(draft, uploads):
    files = uploads(**{"a.png": 1, "b.png": b"damaged", "b.txt": "b"})
    read = []
    add_pictures(draft, files, lambda *count: read.append(count))
    assert read == [(0, 2), (1, 2), (2, 2)]
    read.clear()
    add_folder(draft, [(f"mine/{path.name}", path) for path in files], lambda *count: read.append(count))
    assert read == [(0, 2), (1, 2), (2, 2)]


def test_a_zip_of_edits_brings_what_pictures_start_from(draft, tmp_path):
    files = {"target/1.png": png(1), "target/1.txt": "do it", "source/1.png": png(2)}
    draft = add_pictures(draft, [zipped(tmp_path / "a.zip", files)]).draft
    assert [(item.name, len(item.sources)) for item in draft.items] == [("target/1.png", 1)]
    assert draft.kind == "edit"


@pytest.mark.parametrize("name", ["../out.png", "/out.png", "a/../../out.png", "C:\\out.png", "..\\out.png"])
def test_a_zip_writes_nothing_outside(draft, tmp_path, name):
    added = add_pictures(draft, [zipped(tmp_path / "a.zip", {name: png(1), "good.png": png(2)})])
    assert names(added.draft) == ["good.png"]
    assert "its name leads out of the zip" in added.problems[0]
    assert list(tmp_path.rglob("*out.png")) == []


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "at 12:30.png", "good.png/1.png"])
def test_a_name_that_no_file_can_have_costs_a_zip_only_that_file(draft, tmp_path, name):
    files = {"good.png": png(1), name: png(2), "zz.png": png(3)}
    added = add_pictures(draft, [zipped(tmp_path / "a.zip", files)])
    assert names(added.draft) == ["good.png", "zz.png"]
    assert len(added.problems) == 1 and "Rename it" in added.problems[0]


def test_a_disk_that_is_full_is_no_damaged_zip(draft, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archive_module, "_write", full)
    with pytest.raises(OSError, match="No space"):
        add_pictures(draft, [zipped(tmp_path / "a.zip", {"1.png": png(1)})])


@pytest.mark.parametrize("cut", [0.3, 0.9])
def test_a_zip_that_was_cut_off_or_altered_is_damaged(draft, tmp_path, cut):
    content = bytearray(zipped(tmp_path / "a.zip", {"1.png": png(1), "2.png": png(2)}).read_bytes())
    place = int(cut * len(content)) if cut > 0.5 else 60
    content[place : place + 8] = b"\xff" * 8
    (tmp_path / "a.zip").write_bytes(content)
    assert "is damaged" in add_pictures(draft, [tmp_path / "a.zip"]).problems[0]


def test_a_zip_holds_no_links(draft, tmp_path):
    (tmp_path / "secret.png").write_bytes(png(7))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        link = zipfile.ZipInfo("1.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, str(tmp_path / "secret.png"))
    added = add_pictures(draft, [tmp_path / "a.zip"])
    assert added.draft.items == ()
    assert added.problems == ("1.png in a.zip was left out: it is a link.",)


def test_a_zip_that_claims_little_and_holds_much_is_stopped_by_counting(draft, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.png", bytes(MAX_PICTURE_BYTES + 1))
        archive.writestr("2.png", png(2))
    added = add_pictures(draft, [tmp_path / "a.zip"])
    assert names(added.draft) == ["2.png"]
    assert added.problems == ("1.png in a.zip is larger than 25 MB. Scale it down.",)
    monkeypatch.setattr(archive_module, "MAX_UNPACKED", 20_000_000)
    assert "Send fewer pictures at once" in add_pictures(draft, [tmp_path / "a.zip"]).problems[0]


@pytest.mark.parametrize("content", [b"PK\3\4" + bytes(50), b"PK\5\6" + bytes(18), b"no zip"])
def test_a_zip_that_is_none_or_empty_is_told(draft, tmp_path, content):
    (tmp_path / "a.zip").write_bytes(content)
    [problem] = add_pictures(draft, [tmp_path / "a.zip"]).problems
    assert problem.startswith("a.zip ")


def test_captions_of_a_zip_are_kept_too_long_and_told_where_nobody_can_read_them(draft, tmp_path):
    files = {"1.png": png(1), "1.txt": "x" * 2001, "2.png": png(2), "2.txt": b"\0", "3.png": png(3)}
    files |= {"4.png": png(4), "4.txt": "\n".join(["y" * 300] * 100)}
    added = add_pictures(draft, [zipped(tmp_path / "a.zip", files)])
    assert list(captions(added.draft).values()) == ["x" * 2001, "", "", ""]
    assert [problem.split(" ")[0] for problem in added.problems] == ["2.txt", "4.png"]
    assert "more than 20000 characters" in added.problems[1]


def test_a_zip_captions_pictures_that_are_there_already(draft, uploads, tmp_path):
    draft = add_pictures(draft, uploads(a_png=1, b_png=2)).draft
    added = add_pictures(
        draft, [zipped(tmp_path / "a.zip", {"a.png": png(1), "a.txt": "one", "b.txt": "two"})]
    )
    assert captions(added.draft) == {"a.png": "one", "b.png": "two"}
    assert ["is the same picture" in problem for problem in added.problems] == [True]
    files = {"mine/a.txt": "three", "mine/b.png.txt": "four", "mine/c.txt": "waits", "prompts.txt": "zorp"}
    added = add_pictures(draft, [zipped(tmp_path / "b.zip", files)])
    assert captions(added.draft) == {"a.png": "three", "b.png": "four"}
    assert (added.problems, added.draft.waiting) == ((), ("c.txt",))
    assert draft_config(added.draft).preview_prompts == ("zorp",)


def test_folders_of_a_zip_tell_pictures_of_one_name_apart(draft, tmp_path):
    files = {"10_a/1.png": png(1), "10_b/1.png": png(2), "10_b/1.txt": "of b", "10_ /x": b"x"}
    draft = add_pictures(draft, [zipped(tmp_path / "a.zip", files)]).draft
    assert captions(draft) == {"10_a/1.png": "", "10_b/1.png": "of b"}


@pytest.mark.parametrize("odd", [{"prompts.txt": b"\0"}, {"prompts.txt": "x" * 30_000}])
def test_one_odd_file_of_a_zip_is_told_and_the_rest_comes(draft, tmp_path, odd):
    files = {"1.png": png(1), "1.txt": "one", **odd}
    added = add_pictures(draft, [zipped(tmp_path / "a.zip", files)])
    assert captions(added.draft) == {"1.png": "one"} and len(added.problems) == 1


def test_a_folder_without_a_name_behind_its_number_is_one_like_others(draft, tmp_path):
    added = add_pictures(draft, [zipped(tmp_path / "a.zip", {"10_ /1.png": png(1), "10_ /1.txt": "one"})])
    assert (list(captions(added.draft).values()), added.draft.trigger_word) == (["one"], "")


def test_files_of_the_system_are_passed_over_in_silence(draft, uploads):
    (added,) = [add_pictures(draft, uploads(Thumbs_db=b"x", desktop_ini=b"x", **{"_DS_Store": b"x"}))]
    assert (added.problems, added.notes) == ((), ())


def test_a_draft_holds_so_many_pictures_and_the_rest_is_refused(draft, uploads):
    added = add_pictures(draft, uploads(**{f"p{n:03}_png": n for n in range(MAX_PICTURES + 2)}))
    draft = added.draft
    assert len(added.keys) == len(draft.items) == MAX_PICTURES
    assert added.problems == (
        "200 pictures are the most of a draft: of the 202 that came, 2 were left out (p200.png, p201.png)."
        " Remove some first.",
    )
    draft = remove_picture(draft, added.keys[0])
    assert len(add_pictures(draft, uploads(p201_png=201)).keys) == 1


def test_too_many_files_at_once_are_cut_off_with_a_word(draft, uploads):
    files = uploads(**{f"t{n:04}_txt": "x" for n in range(MAX_FILES + 2)})
    added = add_pictures(draft, files)
    draft = added.draft
    assert len(draft.waiting) == MAX_FILES
    assert added.problems == ("t1200.txt was left out: 1200 files at once are the most.",)


def test_the_same_picture_twice_is_refused(draft, uploads):
    draft = add_pictures(draft, uploads(a_png=1)).draft
    added = add_pictures(draft, uploads(b_bmp=b"", c_png=1))
    draft = added.draft
    assert "c.png is the same picture as a.png. It was left out." in added.problems
    assert names(draft) == ["a.png"]
    assert len(list(draft.pictures.iterdir())) == len(list(draft.thumbnails.iterdir())) == 1


def test_files_of_one_name_from_two_folders_are_told_apart(draft, tmp_path):
    """Twice the same picture, and the picture of another name: no sentence says that a name equals itself."""
    first, second = tmp_path / "1", tmp_path / "2"
    for folder in (first, second):
        folder.mkdir()
    for path, seed in ((first / "00.png", 1), (first / "01.png", 2), (second / "00.png", 1)):
        make_picture(seed).save(path)
    draft = add_pictures(draft, [first / "00.png", first / "01.png"]).draft
    [problem] = add_pictures(draft, [second / "00.png"]).problems
    assert problem == "The new 00.png is the same picture as the one that is there. It was left out."
    make_picture(2).save(second / "00.png")
    [problem] = add_pictures(draft, [second / "00.png"]).problems
    assert problem == "The new 00.png is the same picture as 01.png. It was left out."
    make_picture(3).save(second / "00.png")
    draft = add_pictures(draft, [second / "00.png"]).draft
    assert names(draft) == ["00.png", "01.png", "00 (2).png"]
    make_picture(3).save(first / "00.png")
    [problem] = add_pictures(draft, [first / "00.png"]).problems
    assert problem == "The new 00.png is the same picture as 00 (2).png. It was left out."


def test_only_pixels_are_kept_upright_and_bounded(tmp_path, draft):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right
    exif[GPS] = {1: "N", 2: (52.0, 31.0, 0.0)}
    large = Image.new("RGB", (3000, 2500), "red")
    large.paste("blue", (0, 0, 3000, 1250))
    large.save(tmp_path / "a.jpg", exif=exif, comment=b"secret")
    draft = add_pictures(draft, [tmp_path / "a.jpg"]).draft
    [item] = draft.items
    assert note_repairs(draft) == {item.key: ("a.jpg was turned upright, as its camera noted.",)}
    with Image.open(draft.pictures / f"{item.key}.png") as kept:
        assert kept.size == (2048, 2458)  # the shorter side 2500 -> 2048, 3000 x 2048 / 2500 = 2457.6
        assert (kept.info, dict(kept.getexif())) == ({}, {})
        assert kept.getpixel((100, 1000))[0] > 200 > 50 > kept.getpixel((2000, 1000))[0]
    with Image.open(draft.thumbnail(item)) as thumbnail:
        assert (thumbnail.format, max(thumbnail.size), dict(thumbnail.getexif())) == ("WEBP", 512, {})


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_a_hostile_name_stays_a_name(tmp_path, draft):
    path = tmp_path / "a\n<b>..\\..\\x.png"
    picture(1).save(path)
    draft = add_pictures(draft, [path]).draft
    [item] = draft.items
    assert "\n" not in item.name
    assert draft.thumbnail(item).parent == draft.thumbnails
    assert item.key.isalnum()


# The file


def test_a_draft_of_an_earlier_version_is_read_and_of_a_later_one_refused(draft, uploads):
    draft = fill(draft, uploads)
    file = draft.path / "draft.json"
    plain = json.loads(file.read_text())
    assert plain.pop("schema") == 3 and plain.pop("version")
    assert [item.pop("sources") for item in plain["items"]] == [[]] * 4
    for item in plain["items"]:
        del item["creature"], item["focus"]
    file.write_text(json.dumps(plain))
    items = tuple(replace(item, creature=True) for item in draft.items)
    assert read_draft(draft.path).content == replace(draft.content, items=items)
    file.write_text(json.dumps(plain | {"schema": 4, "new": 1}))
    with pytest.raises(DraftError, match="made by a later version of this program"):
        read_draft(draft.path)
    assert list_drafts(draft.path.parent) == []


@pytest.mark.parametrize(
    "text", ["", "7", "[]", "{}", '{"preset": 7}', '{"preset": "pocket", "items": 7}', '{"schema": "x"}']
)
def test_a_damaged_file_is_refused_in_words(draft, text):
    (draft.path / "draft.json").write_text(text)
    with pytest.raises(DraftError, match="damaged"):
        read_draft(draft.path)


# Captions, settings, checks


def test_captions_are_kept_as_typed(draft, uploads):
    added = add_pictures(draft, uploads(a_png=1))
    draft = set_caption(added.draft, key := added.keys[0], "one \n\n ein Bär 🐻")
    assert draft.items[0].caption == "one \n\n ein Bär 🐻"
    with pytest.raises(DraftError, match="20001 characters"):
        set_caption(draft, key, "x" * 20_001)


def test_keys_are_ours(draft, uploads):
    draft = fill(draft, uploads)
    for wrong in ("", "../../x", "p0.png", "p0"):
        with pytest.raises(DraftError, match="no longer in the draft"):
            set_caption(draft, wrong, "x")
        with pytest.raises(DraftError, match="no longer in the draft"):
            remove_picture(draft, wrong)
    assert len(draft.items) == 4


def test_a_removed_picture_leaves_no_file(draft, uploads):
    draft = fill(draft, uploads)
    draft = remove_picture(draft, draft.items[1].key)
    assert names(draft) == ["p0.png", "p2.png", "p3.png"]
    assert len(list(draft.pictures.iterdir())) == len(list(draft.thumbnails.iterdir())) == 3


def test_what_training_enlarges_and_how_often_many_pictures_are_seen_is_told_of_the_set(draft, uploads):
    draft = set_settings(fill(draft, uploads), preset="z-image-subject")
    resolution = draft_config(draft).resolution
    [enlarged] = note_repairs(draft)[""]
    assert enlarged.startswith(f"4 of 4 pictures are smaller than the {resolution} x {resolution} pixels")
    draft = set_settings(draft, preset="pocket", steps=100, batch_size=4)
    assert note_repairs(draft) == {}
    items = tuple(replace(draft.items[0], key=str(n), name=str(n), pixels=str(n)) for n in range(50))
    [many] = note_repairs(replace(draft, content=replace(draft.content, items=items)))[""]
    assert many.startswith("Of 50 pictures, 100 steps show each about 8 times.")


def test_the_trigger_word_takes_its_place_in_captions(draft, uploads):
    draft = fill(draft, uploads)
    draft = set_settings(draft, trigger_word="zorp")
    draft = set_caption(draft, draft.items[0].key, "a photo of [trigger]")
    assert draft_dataset(draft).examples[0].captions == ("a photo of zorp",)
    assert draft.items[0].caption == "a photo of [trigger]"
    draft = set_settings(draft, trigger_word="")
    assert check_draft(draft) == {
        "": ("Captions hold [trigger], and there is no trigger word to stand for it. Make one up.",)
    }


def test_problems_are_told_at_their_picture(draft, uploads, tmp_path):
    draft = fill(draft, uploads)
    picture(9, (63, 128)).save(tmp_path / "small.png")
    added = add_pictures(draft, [tmp_path / "small.png"])
    draft, [key] = added.draft, added.keys
    first = draft.items[0].key
    draft = set_caption(draft, first, "x" * 2001)
    small = "small.png has 63 x 128 pixels, and each side needs 64 or more. Use a larger picture."
    assert check_draft(draft) == {
        first: ("The caption of p0.png has 2001 characters. Shorten it to 2000 at most.",),
        key: ("The caption of small.png is empty. Write what the picture shows.", small),
    }
    assert note_repairs(draft)[key] == (
        "small.png is more than twice as long as it is wide: only its middle is used.",
    )
    with pytest.raises(PicturesError) as caught:
        draft_dataset(draft)
    assert len(caught.value.problems) == 3


def test_the_smallest_side_follows_the_resolution(draft, uploads):
    draft = fill(draft, uploads)
    assert check_draft(draft) == {}
    draft = set_settings(draft, resolution=128)
    assert len(check_draft(draft)) == 4
    draft = set_settings(draft, resolution=0)  # cannot work, and is told where the settings are
    assert "needs 256 or more" in check_draft(draft)[draft.items[0].key][0]


def test_settings_are_the_presets_but_for_what_was_changed(draft):
    draft = set_settings(draft, steps=7, trigger_word="zorp", kind="style")
    assert draft_config(draft) == replace(
        make_config(load_preset("pocket").settings), steps=7, trigger_word="zorp"
    )
    assert (draft.kind, draft.trigger_word, draft.preset) == ("style", "zorp", "pocket")
    draft = set_settings(draft, steps=None)
    assert draft.settings == {"trigger_word": "zorp"}


def test_another_preset_drops_what_belonged_to_the_last(draft):
    draft = set_settings(draft, trigger_word="zorp", rank=8, preset="z-image-subject", base_model="models/z")
    assert draft_config(draft).rank == 8
    draft = set_settings(draft, preset="z-image-style")
    assert draft.settings == {"trigger_word": "zorp", "base_model": "models/z"}
    draft = set_settings(draft, preset="pocket")
    assert draft.settings == {"trigger_word": "zorp"}


def test_values_are_judged_at_the_end_and_nonsense_at_once(draft):
    draft = set_settings(draft, steps=0, rank=1.5)
    with pytest.raises(ConfigError, match=r"`rank` must be a whole number, got 1\.5"):
        draft_config(draft)
    for name, value in {
        "stepz": 1,
        "name": 5,
        "preview_prompts": [1],
        "steps": "many",
        "trigger_word": "x" * 20_001,
        "preset": "none",
        "kind": "mood",
    }.items():
        with pytest.raises(ConfigError, match=name if name != "preset" else "no preset"):
            set_settings(draft, **{name: value})
    assert draft.settings == {"steps": 0, "rank": 1.5}


def test_writers_at_the_same_time_lose_nothing(draft, uploads):
    draft = fill(draft, uploads, count=8)
    keys = [item.key for item in draft.items]
    more = uploads(**{f"q{n}_png": 100 + n for n in range(8)})

    def write(number):
        set_caption(draft, keys[number], f"caption {number}")
        set_settings(
            draft, **{("steps", "rank", "seed", "name")[number % 4]: "n" if number % 4 == 3 else number}
        )
        add_pictures(draft, [more[number]])

    with ThreadPoolExecutor(8) as tabs:
        list(tabs.map(write, range(8)))
    draft = read_draft(draft.path)
    assert [item.caption for item in draft.items[:8]] == [f"caption {n}" for n in range(8)]
    assert sorted(names(draft)[8:]) == [f"q{n}.png" for n in range(8)]
    assert draft.settings.keys() == {"steps", "rank", "seed", "name"}


# Examples and runs


@pytest.mark.parametrize("example", list_examples(), ids=lambda example: example.name)
def test_an_example_is_ready_to_start(tmp_path, example):
    mine = current_draft(tmp_path / "drafts")
    draft = load_example(tmp_path / "drafts", example.name)
    assert draft != mine
    assert check_draft(draft) == {}
    config = draft_config(draft)
    assert config.trigger_word == example.name
    prompts = (EXAMPLES / example.name / "prompts.txt").read_text(encoding="utf-8").split("\n")
    assert config.preview_prompts == tuple(filter(None, prompts))
    original = read_examples(EXAMPLES / example.name, minimum_side=64).examples
    for mine, theirs in zip(draft_dataset(draft).examples, original, strict=True):
        assert mine.captions == theirs.captions
        assert load_picture(mine.image).tobytes() == load_picture(theirs.image).tobytes()


def test_an_unknown_example_leaves_nothing_behind(tmp_path):
    with pytest.raises(DraftError, match="no example"):
        load_example(tmp_path / "drafts", "../examples/zorp")
    assert list_drafts(tmp_path / "drafts") == []


def test_a_draft_becomes_a_run_and_a_run_a_draft_again(tmp_path):
    draft = load_example(tmp_path / "drafts", "zorp")
    draft = set_settings(draft, rank=8, steps=5)
    draft = set_caption(draft, draft.items[0].key, "zorp at home\nzorp")
    run = create_run(tmp_path / "runs", draft_config(draft), draft_dataset(draft))
    clone = clone_run(tmp_path / "drafts", run.config, run.dataset)
    assert draft_config(clone) == run.config
    assert clone.preset == "pocket"
    assert clone.settings == draft.settings
    assert [item.caption for item in clone.items] == [item.caption for item in draft.items]
    assert check_draft(clone) == {}


def test_a_moved_crop_goes_from_the_draft_through_a_run_into_a_copy(tmp_path):
    draft = load_example(tmp_path / "drafts", "zorp")
    run = create_run(tmp_path / "runs", draft_config(draft), draft_dataset(draft))
    assert not (run.dataset / "crops.json").exists()
    moved = set_focus(draft, draft.items[1].key, (0.25, 1))
    assert [item.focus for item in moved.items[:3]] == [(0.5, 0.5), (0.25, 1), (0.5, 0.5)]
    run = create_run(tmp_path / "runs", draft_config(moved), draft_dataset(moved))
    examples = read_examples(run.dataset, minimum_side=64).examples
    assert [example.focus for example in examples[:3]] == [(0.5, 0.5), (0.25, 1), (0.5, 0.5)]
    clone = clone_run(tmp_path / "drafts", run.config, run.dataset)
    assert [item.focus for item in clone.items] == [item.focus for item in moved.items]
    assert draft_config(clone) == run.config


@pytest.mark.parametrize("focus", [(0.5,), (0.5, 1.01), (-0.1, 0), (float("nan"), 0), ("0", "0"), None])
def test_a_crop_stays_in_its_picture(draft, uploads, focus):
    draft = fill(draft, uploads)
    with pytest.raises(DraftError, match="two numbers between 0 and 1"):
        set_focus(draft, draft.items[0].key, focus)
    with pytest.raises(DraftError, match="no longer in the draft"):
        set_focus(draft, "other", (0, 0))
    assert read_draft(draft.path) == draft


def test_a_run_of_another_base_is_cloned_with_the_nearest_preset(tmp_path):
    draft = load_example(tmp_path / "drafts", "zorp")
    config = make_config({**load_preset("z-image-style").settings, "learning_rate": 2e-5})
    run = create_run(tmp_path / "runs", config, draft_dataset(draft))
    clone = clone_run(tmp_path / "drafts", run.config, run.dataset)
    assert (clone.preset, clone.kind, clone.settings) == ("z-image-style", "style", {"learning_rate": 2e-5})


def test_a_copy_keeps_settings_that_the_page_does_not_show(tmp_path):
    draft = load_example(tmp_path / "drafts", "zorp")
    config = replace(draft_config(draft), loss="velocity", ema_decay=0.99, lora_alpha=6.0)
    run = create_run(tmp_path / "runs", config, draft_dataset(draft))
    clone = clone_run(tmp_path / "drafts", run.config, run.dataset)
    assert draft_config(clone) == run.config
    clone = set_settings(clone, steps=7)
    assert draft_config(clone) == replace(run.config, steps=7)


def test_a_draft_of_an_earlier_version_with_a_setting_that_is_gone_can_be_used(tmp_path):
    draft = load_example(tmp_path / "drafts", "zorp")
    file = draft.path / "draft.json"
    state = json.loads(file.read_text())
    expected = draft_config(draft)
    file.write_text(json.dumps(state | {"settings": {**state["settings"], "stop_early": True}}))
    draft = read_draft(draft.path)
    assert draft_config(draft) == expected
    assert check_draft(draft) == {}


# Pictures to start from


@pytest.fixture
def pairs(draft, tmp_path):
    """A draft of an edit: four pictures, each with what it is made from, as they were dropped in together."""
    folder = save_pairs(tmp_path / "pairs", sizes=((256, 256),) * 4)
    return add_pictures(set_settings(draft, preset="klein-4b-subject"), folder.iterdir()).draft


def names_of(draft):
    return [[source.name for source in item.sources] for item in draft.items]


def files_of(draft):
    return {file.stem for place in (draft.pictures, draft.thumbnails) for file in place.iterdir()}


def test_pairs_that_are_dropped_in_find_each_other_and_make_it_an_edit(pairs):
    assert [item.name for item in pairs.items] == [f"{number}.png" for number in range(4)]
    assert names_of(pairs) == [[f"{number}_source.png"] for number in range(4)]
    assert (pairs.kind, pairs.preset) == ("edit", "klein-4b-edit")
    assert check_draft(pairs) == {} and advise(pairs) == {}  # the same instruction for all is nothing odd
    dataset = draft_dataset(pairs)
    assert dataset.sources == 1
    with Image.open(dataset.examples[2].source_images[0]) as kept:
        assert kept.tobytes() == make_picture(12, 256, 256).tobytes()


def test_a_source_may_come_later_and_again(pairs, tmp_path):
    key, before = pairs.items[0].key, files_of(pairs)
    (tmp_path / "more").mkdir()
    for name in ("b10.png", "b2.png", "0_source.png"):
        make_picture(30, 300, 256).save(tmp_path / "more" / name)
    added = add_sources(pairs, key, (tmp_path / "more").iterdir())
    assert added.problems == ()
    # The one of the same name was replaced, and its file is gone.
    assert names_of(added.draft)[0] == ["0_source.png", "b2.png", "b10.png"]
    assert len(files_of(added.draft)) == len(before) + 2
    make_picture(31, 300, 256).save(tmp_path / "c.png")
    make_picture(32, 300, 256).save(tmp_path / "d.png")
    added = add_sources(added.draft, key, [tmp_path / "c.png", tmp_path / "d.png"])
    assert added.problems == ("d.png was left out: 4 source pictures are the most.",)
    assert len(added.draft.items[0].sources) == added.draft.sources == 4
    dropped = add_pictures(added.draft, [tmp_path / "more" / "b2.png"])
    assert dropped.problems == ()  # without such a name, it is one more picture
    with pytest.raises(DraftError, match="no longer in the draft"):
        remove_sources(pairs, "../x")


def test_what_is_wrong_with_sources_is_told_at_their_picture(pairs, tmp_path):
    changed = remove_sources(pairs, pairs.items[1].key)
    message = "1.png has no source picture. Add what it is made from."
    assert check_draft(changed) == {changed.items[1].key: (message,)}
    (problem,) = check_draft(set_settings(pairs, kind="style"))[""]
    assert problem.startswith("There are source pictures, which only an edit starts from.")
    make_picture(9).save(tmp_path / "9_source.png")
    (tmp_path / "1_source.png").write_text("no picture")
    added = add_pictures(changed, [tmp_path / "9_source.png", tmp_path / "1_source.png"])
    assert added.problems[0].startswith("1_source.png cannot be read as a picture.")
    assert added.problems[1].startswith("9_source.png is a source picture, and the picture that is made from")
    assert names_of(added.draft)[1] == []


def test_a_removed_picture_takes_its_sources_along(pairs):
    left = remove_picture(pairs, pairs.items[0].key)
    assert files_of(left) == {key for item in left.items for key in (item.key, item.sources[0].key)}


def test_metadata_names_sources_of_an_upload(draft, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    rows = []
    for number in range(4):
        make_picture(number, 256, 256).save(folder / f"after{number}.png")
        rows.append({"file_name": f"after{number}.png", "text": "blue", "source": "before.png"})
    rows.append({"file_name": "x.png", "text": "blue", "source": "before/x.png"})
    make_picture(9, 256, 256).save(folder / "before.png")
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    added = add_pictures(draft, folder.iterdir())
    assert names_of(added.draft) == [["before.png"]] * 4
    assert added.problems == (
        "Line 5 of metadata.jsonl names a source picture like its result. Give it another name.",
    )


def test_a_draft_of_an_edit_becomes_a_run_and_a_run_a_draft_again(pairs, tmp_path):
    more = add_sources(pairs, pairs.items[2].key, [tmp_path / "pairs" / "0.png"]).draft
    run = create_run(tmp_path / "runs", draft_config(more), draft_dataset(more))
    assert (run.sources, len(run.sources_of(3)), len(run.sources_of(1))) == (2, 2, 1)
    again = clone_run(tmp_path / "drafts", run.config, run.dataset)
    assert (again.kind, again.preset, again.sources) == ("edit", "klein-4b-edit", 2)
    assert [len(item.sources) for item in again.items] == [1, 1, 2, 1]
    assert check_draft(again) == {}
    once = create_run(tmp_path / "runs", draft_config(again), draft_dataset(again))
    for number in range(1, 5):
        for one, other in zip(run.sources_of(number), once.sources_of(number), strict=True):
            with Image.open(one) as before, Image.open(other) as after:
                assert before.tobytes() == after.tobytes()
