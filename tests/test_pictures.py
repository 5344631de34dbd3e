import contextlib
import json
import os
import random
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin

from dopsd_app.data.picture_file import _halved, decode
from dopsd_app.data.pictures import (
    Example,
    Note,
    PicturesError,
    Problem,
    copy_examples,
    crop,
    crop_box,
    fill_placeholders,
    load_picture,
    lost_share,
    read_examples,
)

FILES = Path(__file__).parent / "support" / "files"
DAMAGED = "a.png is damaged or incomplete. Download or save it again."
COLOURS = ["red", "green", "blue", "orange", "purple", "gold", "pink", "teal"]
ORIENTATION = 0x0112  # the EXIF tag
posix_only = pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")


@pytest.fixture
def folder(tmp_path):
    """Four good pictures, 1.png to 4.png, each with one caption."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(1, 5):
        add(folder, f"{number}.png", colour=COLOURS[number], caption=f"picture {number}")
    return folder


def add(folder, name, *, colour="grey", size=(64, 64), caption=None, **options):
    Image.new("RGB", size, colour).save(folder / name, **options)
    if caption is not None:
        (folder / name).with_suffix(".txt").write_text(caption, encoding="utf-8")


def write_metadata(folder, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for path in folder.glob("*.txt"):
        path.unlink()


def rows_of(folder):
    return [{"file_name": f"{number}.png", "text": f"picture {number}"} for number in range(1, 5)]


def read(folder):
    return read_examples(folder, minimum_side=64)


def problems_of(folder):
    with pytest.raises(PicturesError) as caught:
        read(folder)
    assert str(caught.value).split("\n") == [problem.message for problem in caught.value.problems]
    return caught.value.problems


def refusal(path):
    with pytest.raises(PicturesError) as caught:
        load_picture(path)
    [problem] = caught.value.problems
    assert problem.picture == path.name
    return problem.message


def captions(dataset):
    return [example.captions for example in dataset.examples]


def names(dataset):
    return [example.image.name for example in dataset.examples]


def messages(dataset):
    return [note.message for note in dataset.notes]


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, depth, colour_type, rows, packed=False):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", rows if packed else zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def red_means_green():
    """A colour profile that differs from sRGB in one thing: its red is green, and its green red."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"????", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"????", b"gXYZ", 1)


# Reading a folder


def test_a_folder_with_caption_files_is_read(folder):
    dataset = read(folder)
    assert dataset.examples[0] == Example(folder / "1.png", ("picture 1",), ())
    assert captions(dataset) == [(f"picture {number}",) for number in range(1, 5)]
    assert dataset.notes == ()


def test_the_folder_may_be_given_as_text(folder):
    assert read(str(folder)) == read(folder)


def test_each_line_of_a_caption_file_is_a_caption(folder):
    (folder / "2.txt").write_bytes(
        "\ufeff a cat \r\n\r\n\tthe\tcat, at  night\u2028un chat à Paris\n  \n".encode()
    )
    assert read(folder).examples[1].captions == ("a cat", "the cat, at night", "un chat à Paris")


def test_pictures_are_in_natural_order(folder):
    add(folder, "10.png", colour="black", caption="ten")
    add(folder, "b2.png", colour="white", caption="b two")
    add(folder, "B10.png", colour="teal", caption="b ten")
    assert names(read(folder)) == ["1.png", "2.png", "3.png", "4.png", "10.png", "b2.png", "B10.png"]


def test_upper_and_lower_case_and_accents_in_names_are_forgiven(folder):
    add(folder, "IMG_5.JPG", colour="black")
    (folder / "img_5.TXT").write_text("five", encoding="utf-8")
    add(folder, "caf\u00e9.png", colour="white")
    (folder / "cafe\u0301.txt").write_text("coffee", encoding="utf-8")
    assert set(captions(read(folder))) > {("five",), ("coffee",)}


def test_an_exact_name_comes_before_a_similar_one(folder):
    add(folder, "cat.png", colour="black", caption="small")
    if (folder / "CAT.png").exists():
        pytest.skip("this disk makes no difference between cat and CAT")
    add(folder, "CAT.png", colour="white", caption="large")
    found = {example.image.name: example.captions for example in read(folder).examples}
    assert found["cat.png"] == ("small",)
    assert found["CAT.png"] == ("large",)


def test_a_shared_caption_file_is_refused(folder):
    add(folder, "1.jpg", colour="black")
    message = "1.jpg and 1.png share the caption file 1.txt. Give each picture a name of its own."
    assert problems_of(folder) == (Problem("1.png", message),)


def test_pictures_are_known_by_content_not_by_name(folder):
    add(folder, "5.jpg", colour="black", caption="a WebP", format="WEBP")
    add(folder, "6", colour="white", caption="a JPEG", format="JPEG")
    assert names(read(folder))[4:] == ["5.jpg", "6"]


def sources(dataset):
    return [[path.name for path in example.source_images] for example in dataset.examples]


def add_sources(folder, *names, size=(48, 32)):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        add(folder, name, size=size)


def test_pictures_to_start_from_are_found_by_their_names(folder, tmp_path):
    add_sources(folder, "1_source.png", "2_SOURCE.jpg", "3_source_10.png", "3_source_2.png", "4_source_1.png")
    found = read(folder)
    assert sources(found)[:2] == [["1_source.png"], ["2_SOURCE.jpg"]]
    assert sources(found)[2:] == [["3_source_2.png", "3_source_10.png"], ["4_source_1.png"]]
    assert (found.sources, found.notes) == (2, ())


def test_pictures_to_start_from_lie_in_a_folder_of_the_same_names(folder):
    for name in ("1.png", "1.txt"):
        (folder / name).rename(folder / name.replace("1", "dog_2"))
    # What begins like a number of another picture is the picture of its own name.
    add_sources(
        folder, "source/dog_2.png", "source/2.png", "source/3_1.png", "source/3_2.png", "source/4.jpg"
    )
    assert sources(read(folder)) == [["2.png"], ["3_1.png", "3_2.png"], ["4.jpg"], ["dog_2.png"]]
    inside = [path for path in folder.iterdir() if path.name != "source"]
    (folder / "target").mkdir()
    for path in inside:
        path.rename(folder / "target" / path.name)
    add(folder, "9.png")
    found = read(folder)
    assert sources(found) == [["2.png"], ["3_1.png", "3_2.png"], ["4.jpg"], ["dog_2.png"]]
    assert [example.image.parent.name for example in found.examples] == ["target"] * 4
    assert messages(found) == ["9.png is not in the folder target, and was left out."]


@pytest.mark.parametrize("key", ["source", "sources", "source_file_name", "source_file_names"])
def test_pictures_to_start_from_are_named_in_metadata(folder, key):
    add_sources(folder, "before/a.png", "b.png")
    rows = rows_of(folder)
    for row in rows:
        row[key] = "before/a.png" if key in ("source", "source_file_name") else ["before/a.png", "b.png"]
    if key in ("source", "source_file_name"):
        (folder / "b.png").unlink()
    write_metadata(folder, *rows)
    names = ["a.png"] if key in ("source", "source_file_name") else ["a.png", "b.png"]
    assert sources(read(folder)) == [names] * 4


def test_metadata_may_name_pictures_and_sources_in_their_folders(folder):
    for name in ("target", "source"):
        (folder / name).mkdir()
    rows = rows_of(folder)
    for row in rows:
        name = row["file_name"]
        (folder / name).rename(folder / "target" / name)
        add(folder, f"source/{name}", size=(48, 32))
        row["file_name"], row["source"] = f"target/{name}", f"source/{name}"
    write_metadata(folder, *rows)
    found = read(folder).examples
    assert [(example.image.parent.name, example.source_images[0].parent.name) for example in found] == [
        ("target", "source")
    ] * 4
    assert all(example.image.name == example.source_images[0].name for example in found)


def test_a_source_that_metadata_names_and_that_is_not_there_is_told(folder):
    rows = rows_of(folder)
    rows[2]["source"] = "gone.png"
    rows[3]["source"] = 3
    write_metadata(folder, *rows)
    found = [problem.message for problem in problems_of(folder)]
    assert (
        "Line 3 of metadata.jsonl names gone.png, which is not there. Add the picture or remove the line."
        in found
    )
    assert "Line 4 of metadata.jsonl names a source picture that is no text. Give file names." in found


def test_pictures_to_start_from_survive_the_way_into_a_run(folder, tmp_path):
    for number in (1, 2, 4):
        add(folder, f"{number}_source.jpg", colour="black", size=(48, 32))
    for place, colour in ((10, "pink"), (2, "grey")):
        add(folder, f"3_source_{place}.png", colour=colour, size=(48, 32))
    copy_examples(read(folder), tmp_path / "copy")
    copied = read(tmp_path / "copy")
    assert sources(copied) == [["01-1.png"], ["02-1.png"], ["03-1.png", "03-2.png"], ["04-1.png"]]
    grey, pink = (load_picture(path) for path in copied.examples[2].source_images)
    assert (grey.getpixel((0, 0)), pink.getpixel((0, 0))) == ((128, 128, 128), (255, 192, 203))
    assert grey.size == (48, 32)  # they may be smaller than what is learned from them
    assert copied.notes == ()


def test_all_that_is_wrong_with_pictures_to_start_from_is_told_at_once(folder):
    add_sources(folder, "1_source.png", "9_source.png", "source/7.png")
    (folder / "2_source.png").write_text("no picture")
    for number in range(1, 6):
        add_sources(folder, f"4_source_{number}.png")
    found = [(problem.picture, problem.message) for problem in problems_of(folder)]
    missing = "is a source picture, and the picture that is made from it is missing."
    assert [name for name, message in found if missing in message] == ["", ""]
    by_name = dict(found[2:])
    assert by_name["2.png"].startswith("2_source.png cannot be read as a picture.")
    assert by_name["3.png"].startswith("3.png has no source picture, and others have one.")
    assert by_name["4.png"].startswith("4.png has 5 source pictures, and 4 are the most.")


def test_a_picture_whose_name_only_sounds_like_a_source_is_a_picture(folder):
    add(folder, "open_source.png", colour="black", caption="a poster")
    assert names(read(folder)) == [*(f"{number}.png" for number in range(1, 5)), "open_source.png"]


def test_files_of_the_system_and_preview_prompts_are_ignored(folder):
    for name in (".DS_Store", ".hidden.png", "Thumbs.db", "desktop.ini", "prompts.txt"):
        (folder / name).write_text("x", encoding="utf-8")
    (folder / ".cache").mkdir()
    assert read(folder).notes == ()


def test_what_is_left_out_is_noted(folder):
    (folder / "5.txt").write_text("a caption", encoding="utf-8")
    (folder / "README.md").write_text("BMW pictures", encoding="utf-8")
    (folder / "more").mkdir()
    assert read(folder).notes == (
        Note("", "README.md is not a picture and was left out."),
        Note("", "more is a folder: what is in it counts only if metadata.jsonl lists it."),
        Note("", "5.txt belongs to no picture and was left out."),
    )


@posix_only
def test_a_pipe_is_left_out_and_not_waited_for(folder):
    os.mkfifo(folder / "5.png")
    assert messages(read(folder)) == ["5.png is not a picture and was left out."]


@posix_only
def test_links_are_followed_wherever_they_lead(folder, tmp_path):
    # The folder was named by the person whose files these are, and the Hub's own cache is made of links.
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    add(blobs, "0a1b", colour="black", format="PNG")
    (folder / "5.png").symlink_to(blobs / "0a1b")
    (folder / "5.txt").symlink_to(folder / "4.txt")
    (folder / "7.png").symlink_to(folder / "7.png")  # to itself
    found = read(folder)
    assert (found.examples[4].image.name, found.examples[4].captions) == ("5.png", ("picture 4",))
    assert messages(found) == ["7.png is not a picture and was left out."]


@posix_only
def test_a_name_with_a_line_break_stays_in_one_line(folder):
    add(folder, "a\nb.png", colour="black")
    assert problems_of(folder)[0].message == "a?b.png has no caption. Write what the picture shows (a?b.txt)."


def test_a_missing_folder_is_a_problem(tmp_path):
    message = f"There is no folder {tmp_path / 'nowhere'}. Check where it is."
    assert problems_of(tmp_path / "nowhere") == (Problem("", message),)
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert "There is no folder" in problems_of(tmp_path / "file")[0].message


# Captions


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b" \r\n \t\n"])
def test_an_empty_caption_is_refused(folder, content):
    (folder / "3.txt").write_bytes(content)
    message = "The caption of 3.png is empty. Write what the picture shows."
    assert problems_of(folder) == (Problem("3.png", message),)


def test_a_picture_without_a_caption_is_refused(folder):
    (folder / "3.txt").unlink()
    message = "3.png has no caption. Write what the picture shows (3.txt)."
    assert problems_of(folder) == (Problem("3.png", message),)


@pytest.mark.parametrize(
    ("text", "encoding", "name"),
    [
        ("café", "latin-1", "Windows-1252"),
        ("ein Bär in der Küche, ganz groß", "cp1252", "Windows-1252"),
        ("“très” chic, à côté", "cp1252", "Windows-1252"),
        ("a cat", "utf-16", "UTF-16"),
        ("a cat", "utf-16-le", "UTF-16"),
        ("a cat", "utf-16-be", "UTF-16"),
        ("zorpの写真", "shift_jis", "Shift-JIS"),
        ("a red 犬", "shift_jis", "Shift-JIS"),
        ("фото zorp дома", "cp1251", "Windows-1251"),
        ("一只狗的照片,在公园里", "gbk", "GB 18030"),
        ("фото собаки в парке", "cp1251", "Windows-1251"),
        ("공원에 있는 개의 사진", "euc_kr", "EUC-KR"),
    ],
)
def test_a_caption_file_in_another_encoding_is_read_with_a_note(folder, text, encoding, name):
    (folder / "3.txt").write_bytes(text.encode(encoding))
    found = read(folder)
    assert found.examples[2].captions == (text,)
    assert messages(found) == [f"3.txt was read as {name}: look whether its letters are right."]


@pytest.mark.parametrize("content", [b"a cat\0", bytes(range(256))])
def test_a_caption_file_that_is_no_text_is_refused(folder, content):
    (folder / "3.txt").write_bytes(content)
    message = "3.txt is no text that can be read. Save it as plain text in UTF-8."
    assert problems_of(folder) == (Problem("3.png", message),)


def test_a_long_caption_is_refused(folder):
    (folder / "2.txt").write_text("x" * 2000, encoding="utf-8")
    assert len(read(folder).examples) == 4
    (folder / "2.txt").write_text("short\n" + "x" * 2001, encoding="utf-8")
    message = "The caption of 2.png has 2001 characters. Shorten it to 2000 at most."
    assert problems_of(folder) == (Problem("2.png", message),)


def test_a_huge_caption_file_is_refused(folder):
    (folder / "2.txt").write_bytes(b"x\n" * 500_001)
    assert problems_of(folder) == (
        Problem("2.png", "2.txt is larger than a megabyte. Keep only captions in it."),
    )


def test_control_characters_go_and_emoji_stay(folder):
    (folder / "2.txt").write_text("a\x1bcat\x07\x7f 👩\u200d🚀", encoding="utf-8")
    assert read(folder).examples[1].captions == ("a cat 👩\u200d🚀",)


# metadata.jsonl


@pytest.mark.parametrize("column", ["text", "caption", "prompt"])
def test_metadata_is_read_as_datasets_writes_it(folder, column):
    write_metadata(folder, *({"file_name": f"{n}.png", column: f"picture {n}"} for n in (3, 1, 4, 2)))
    dataset = read(folder)
    assert names(dataset) == ["1.png", "2.png", "3.png", "4.png"]
    assert captions(dataset) == [(f"picture {number}",) for number in range(1, 5)]


def test_a_list_in_metadata_means_several_captions_of_one_line_each(folder):
    rows = rows_of(folder)
    rows[0]["text"] = ["a cat", "the\ncat\u2028sleeps \ud800", " "]
    write_metadata(folder, *rows)
    assert read(folder).examples[0].captions == ("a cat", "the cat sleeps")


def test_metadata_may_have_a_bom_empty_lines_and_raw_line_separators(folder):
    lines = [json.dumps(row, ensure_ascii=False) for row in rows_of(folder)]
    lines[0] = lines[0].replace("picture 1", "one\u2028two")
    write_metadata(folder, "\ufeff" + lines[0], "", *(line + "\r" for line in lines[1:]))
    assert read(folder).examples[0].captions == ("one two",)


def test_metadata_may_list_pictures_in_folders_below(folder):
    (folder / "train").mkdir()
    add(folder / "train", "5.png", colour="black", size=(20, 20))
    write_metadata(folder, *rows_of(folder), {"file_name": "train/5.png", "text": "five"})
    [problem] = problems_of(folder)
    assert problem.picture == "train/5.png"
    assert problem.message.startswith("train/5.png has 20 x 20 pixels")


def test_caption_files_beside_metadata_are_left_out_with_a_note(folder):
    write_metadata(folder, *rows_of(folder))
    (folder / "1.txt").write_text("another", encoding="utf-8")
    dataset = read(folder)
    assert dataset.examples[0].captions == ("picture 1",)
    assert messages(dataset) == ["The captions are those in metadata.jsonl: the .txt files were left out."]


def test_every_mistake_in_metadata_is_named(folder, tmp_path):
    add(folder, "5.png", colour="black")
    add(folder, "6.png", colour="white")
    add(folder, "7.png", colour="teal")
    add(folder, "8.png", colour="brown")
    write_metadata(
        folder,
        *rows_of(folder),
        "{'file_name': '5.png'}",
        {"file_name": "9.png", "text": "x"},
        {"file_name": "../secret.png", "text": "x"},
        {"file_name": str(tmp_path / "secret.png"), "text": "x"},
        {"file_name": "./4.png", "text": "x"},
        {"text": "x"},
        ["6.png", "x"],
        {"file_name": "6.png", "text": ["a", 7]},
        {"file_name": "7.png"},
        {"file_name": "8.png", "text": []},
        "[" * 100_000,
    )
    assert [(problem.picture, problem.message) for problem in problems_of(folder)] == [
        ("", "metadata.jsonl is not valid JSON in line 5, 15. Write one whole {...} per line."),
        ("", "Line 6 of metadata.jsonl names 9.png, which is not there. Add the picture or remove the line."),
        (
            "",
            "Line 7 of metadata.jsonl names ../secret.png, which is outside the folder. "
            "Copy the picture into the folder.",
        ),
        (
            "",
            f"Line 8 of metadata.jsonl names {tmp_path / 'secret.png'}, which is outside the folder. "
            "Copy the picture into the folder.",
        ),
        ("", 'Line 10 of metadata.jsonl names no picture. Give its file name as "file_name".'),
        ("", 'Line 11 of metadata.jsonl names no picture. Give its file name as "file_name".'),
        ("4.png", "4.png is listed twice in metadata.jsonl. Remove one of the lines."),
        ("5.png", "5.png is not in metadata.jsonl. Add a line with its caption, or remove it."),
        ("6.png", "The caption of 6.png is missing or is not text. Write what the picture shows."),
        ("7.png", "The caption of 7.png is missing or is not text. Write what the picture shows."),
        ("8.png", "The caption of 8.png is empty. Write what the picture shows."),
    ]


@pytest.mark.parametrize("name", ["\0.png", "\ud800.png", "x" * 5000, "a\nb.png"])
def test_impossible_names_in_metadata_are_not_there(folder, name):
    write_metadata(folder, *rows_of(folder), {"file_name": name, "text": "x"})
    [problem] = problems_of(folder)
    assert "which is not there" in problem.message
    assert len(problem.message) < 400
    assert problem.message.isprintable()


@pytest.mark.parametrize("line", ['{"file_name": 5, "text": "x"}', '{"file_name": ' + "1" * 5000 + "}"])
def test_numbers_are_no_names(folder, line):
    write_metadata(folder, *rows_of(folder), line)
    assert "names no picture" in problems_of(folder)[0].message


@posix_only
def test_metadata_may_name_links_as_in_the_cache_of_the_hub(folder, tmp_path):
    (tmp_path / "blobs").mkdir()
    add(tmp_path / "blobs", "0a1b", colour="black", format="PNG")
    for name in ("5.png", "6.png"):  # the same file twice is told as the same picture
        (folder / name).symlink_to(tmp_path / "blobs" / "0a1b")
    more = [{"file_name": name, "text": "x"} for name in ("5.png", "6.png")]
    write_metadata(folder, *rows_of(folder), *more)
    message = "6.png is the same picture as 5.png. Remove one of them."
    assert problems_of(folder) == (Problem("6.png", message),)


def test_unreadable_metadata_is_one_problem(folder):
    write_metadata(folder)
    (folder / "metadata.jsonl").write_bytes(bytes(range(256)))
    message = "metadata.jsonl is no text that can be read. Save it as plain text in UTF-8."
    assert problems_of(folder) == (Problem("", message),)


# What is refused


def test_too_few_pictures(folder):
    (folder / "4.png").unlink()
    message = "Pictures: 4 to 200 are needed, but the folder has 3. Add more."
    assert problems_of(folder) == (Problem("", message),)


def test_too_many_pictures_and_only_the_first_are_opened(folder):
    for number in range(5, 201):
        add(folder, f"{number}.png", colour=(number, 0, 0), caption="x")
    assert len(read(folder).examples) == 200
    (folder / "201.png").write_bytes(b"never opened, and its caption is missing")
    message = "Pictures: 4 to 200 are needed, but the folder has 201. Remove some."
    assert problems_of(folder) == (Problem("", message),)


def test_small_pictures_are_refused_and_the_limit_is_the_callers(folder):
    add(folder, "2.png", colour="black", size=(64, 63))
    message = "2.png has 64 x 63 pixels, and each side needs 64 or more. Use a larger picture."
    assert problems_of(folder) == (Problem("2.png", message),)
    assert len(read_examples(folder, minimum_side=63).examples) == 4


def test_the_same_picture_twice_is_refused_whatever_its_file(folder):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    picture.save(folder / "1.png")
    picture.rotate(180).save(folder / "2.png", exif=exif)
    picture.save(folder / "3.png", format="WEBP", lossless=True)
    assert problems_of(folder) == (
        Problem("2.png", "2.png is the same picture as 1.png. Remove one of them."),
        Problem("3.png", "3.png is the same picture as 1.png. Remove one of them."),
    )


def test_the_same_pixels_in_another_shape_are_another_picture(folder):
    add(folder, "1.png", colour="red", size=(64, 128))
    add(folder, "2.png", colour="red", size=(128, 64))
    assert len(read(folder).examples) == 4


@pytest.mark.parametrize("content", [b"", b"not a picture", b"<svg xmlns='http://www.w3.org/2000/svg'/>"])
def test_what_is_no_picture_is_refused_by_name(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    expected = "a.png cannot be read as a picture. Save it again as JPEG or PNG, or remove it."
    assert refusal(tmp_path / "a.png") == expected


def test_a_missing_picture_is_refused_by_name(tmp_path):
    assert "a.png cannot be read" in refusal(tmp_path / "a.png")


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_truncated_picture_is_refused_by_name(tmp_path, file_format, part):
    path = tmp_path / "a.png"
    Image.effect_noise((64, 64), 80).convert("RGB").save(path, format=file_format)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    assert refusal(path) == DAMAGED


@pytest.mark.parametrize("progressive", [False, True])
def test_a_photograph_that_lacks_only_its_end_is_read_with_a_note(tmp_path, progressive):
    Image.effect_noise((60, 50), 80).convert("RGB").save(tmp_path / "a.png", "JPEG", progressive=progressive)
    content, whole = (tmp_path / "a.png").read_bytes(), load_picture(tmp_path / "a.png")
    for cut in (1, 2):
        (tmp_path / "a.png").write_bytes(content[:-cut])
        picture, remarks = decode(tmp_path / "a.png", "a.png")
        assert picture.tobytes() == whole.tobytes()
        assert remarks == ["lacks its end: all of the picture is there."]
    for cut in (3, 10, 300):  # each would change pixels
        (tmp_path / "a.png").write_bytes(content[:-cut])
        assert refusal(tmp_path / "a.png") == DAMAGED


@pytest.mark.parametrize("texts", [1, 70])
@pytest.mark.parametrize("after", [False, True])
def test_the_text_in_a_picture_is_no_matter(tmp_path, texts, after):
    notes = PngImagePlugin.PngInfo()
    for number in range(texts):
        notes.add_itxt(f"workflow {number}", "x" * (2_000_000 if texts == 1 else 1_000_000), zip=True)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png", pnginfo=notes)
    if after:  # the picture's own chunks first
        content = (tmp_path / "a.png").read_bytes()
        start = content.index(b"iTXt") - 4
        data = content.index(b"IDAT") - 4
        end = content.index(b"IEND") - 4
        moved = content[:start] + content[data:end] + content[start:data] + content[end:]
        (tmp_path / "a.png").write_bytes(moved)
    assert load_picture(tmp_path / "a.png").getpixel((5, 5)) == (255, 0, 0)


@posix_only
def test_a_false_length_in_a_file_asks_for_no_memory(tmp_path):
    add(tmp_path, "a.png")
    content = (tmp_path / "a.png").read_bytes()
    at = content.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(content[:at] + struct.pack(">I", 2**31 - 1) + content[at + 4 :])
    load = (
        "import resource, sys; from dopsd_app.data.pictures import load_picture;"
        "resource.setrlimit(resource.RLIMIT_AS, (1_500_000_000,) * 2); load_picture(sys.argv[1])"
    )
    command = [sys.executable, "-c", load, str(tmp_path / "a.png")]
    assert DAMAGED in subprocess.run(command, capture_output=True, text=True).stderr


@pytest.mark.parametrize("file_format", ["GIF", "BMP", "TIFF", "AVIF"])
def test_other_formats_are_read_whatever_their_names(tmp_path, file_format):
    add(tmp_path, "a.jpg", colour="red", size=(40, 30), format=file_format)
    picture = load_picture(tmp_path / "a.jpg")
    assert (picture.size, picture.mode) == ((40, 30), "RGB")
    assert np.abs(np.asarray(picture).astype(int) - [255, 0, 0]).max() < 3


def test_a_phones_picture_is_read_upright():
    # As a phone writes it: 96 x 64 with red on the left, and "turn me" beside it. Made once with the encoder
    # of pillow-heif 1.8: picture.info["exif"] of orientation 6, picture.save("phone.heic", quality=90).
    picture = load_picture(FILES / "phone.heic")
    assert (picture.size, picture.mode) == ((64, 96), "RGB")
    top, bottom = picture.getpixel((32, 10)), picture.getpixel((32, 85))
    assert np.abs(np.array([top, bottom]) - [[255, 0, 0], [0, 0, 255]]).max() < 8


@pytest.mark.parametrize(
    "brands", [b"heic\0\0\0\0mif1heic", b"mif1\0\0\0\0mif1avif", b"avis\0\0\0\0msf1avis"]
)
def test_a_damaged_picture_of_a_phone_is_refused_by_name(tmp_path, brands):
    (tmp_path / "a.png").write_bytes(b"\0\0\0\x18ftyp" + brands + bytes(100))
    assert refusal(tmp_path / "a.png") == DAMAGED


def test_a_file_that_ends_the_process_of_its_reader_is_refused_by_name(tmp_path):
    content = (FILES / "phone.heic").read_bytes()
    at = content.index(b"Exif") + 2
    (tmp_path / "a.png").write_bytes(
        content[:at] + b"\xce" + content[at + 1 :]
    )  # libheif then follows a null
    assert refusal(tmp_path / "a.png") == DAMAGED


@pytest.mark.parametrize("file_format", ["HEIC", "AVIF", "GIF", "BMP", "TIFF", "PNG", "WEBP", "JPEG"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_whatever_is_wrong_with_a_file_it_is_refused_in_words(tmp_path, file_format):
    path, rng = tmp_path / "a", random.Random(file_format)
    if file_format == "HEIC":
        whole = (FILES / "phone.heic").read_bytes()
    else:
        Image.effect_noise((48, 32), 80).convert("RGB").save(path, format=file_format)
        whole = path.read_bytes()
    for _ in range(6 if file_format == "HEIC" else 60):  # each HEIC starts a process
        content = bytearray(whole)
        for _ in range(rng.randrange(1, 6)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content[: rng.randrange(len(content))] if rng.random() < 0.4 else content)
        with contextlib.suppress(PicturesError):
            load_picture(path)


def test_a_film_beside_the_pictures_is_left_out(folder):
    (folder / "1.mov").write_bytes(b"\0\0\0\x14ftypqt  \0\0\0\0qt  " + bytes(100))
    assert messages(read(folder)) == ["1.mov is not a picture and was left out."]


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "GIF", "AVIF", "TIFF"])
def test_of_an_animation_and_of_several_pages_the_first_picture_is_taken(tmp_path, file_format):
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a", format=file_format, save_all=True, append_images=frames[1:])
    picture, remarks = decode(tmp_path / "a", "a")
    assert np.abs(np.array(picture.getpixel((5, 5))) - [255, 0, 0]).max() < 4
    assert remarks == ["holds several pictures: only the first was taken."]


def test_a_cameras_raw_file_is_no_picture_of_its_preview(tmp_path):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[254] = 1  # a smaller copy of a picture that stands elsewhere in the file
    add(tmp_path, "a.tif", tiffinfo=tags)
    assert refusal(tmp_path / "a.tif") == "a.tif is a camera's raw file. Save it as JPEG or PNG first."


def test_a_photograph_with_a_preview_in_it_is_no_animation(tmp_path):
    photograph, preview = Image.new("RGB", (64, 64), "white"), Image.new("RGB", (16, 16), "black")
    photograph.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[preview])
    picture = load_picture(tmp_path / "a.jpg")
    assert picture.size == (64, 64)
    assert picture.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("size", [(8920, 10001), (10000, 10000), (30000, 30000), (2**31 - 1, 2**31 - 1)])
@pytest.mark.parametrize("warnings_are", ["default", "error"])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path, recwarn, size, warnings_are):
    (tmp_path / "a.png").write_bytes(png(*size, 8, 2, b""))
    warnings.simplefilter(warnings_are)  # recwarn restores the filters
    assert refusal(tmp_path / "a.png") == "a.png has more than 89 million pixels. Scale it down first."


def test_all_problems_are_told_at_once_and_in_order(folder):
    (folder / "1.txt").unlink()
    (folder / "2.png").write_bytes(b"text")
    (folder / "3.txt").write_bytes(b"\0")
    add(folder, "3.png", colour="black", size=(10, 10))
    add(folder, "10.png", colour=COLOURS[4], caption="")
    assert [problem.picture for problem in problems_of(folder)] == [
        "1.png",
        "2.png",
        "3.png",
        "3.png",
        "10.png",
        "10.png",
    ]
    (folder / "10.png").unlink()
    (folder / "4.png").unlink()
    assert [problem.picture for problem in problems_of(folder)] == ["", "1.png", "2.png", "3.png", "3.png"]


# What is repaired


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, ["abc", "def"]),
        (2, ["cba", "fed"]),
        (3, ["fed", "cba"]),
        (4, ["def", "abc"]),
        (5, ["ad", "be", "cf"]),
        (6, ["da", "eb", "fc"]),
        (7, ["fc", "eb", "da"]),
        (8, ["cf", "be", "ad"]),
    ],
)
@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_pictures_are_turned_as_the_camera_noted(tmp_path, orientation, expected, file_format):
    stored = np.array([list(b"abc"), list(b"def")], dtype=np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(stored).convert("RGB").save(tmp_path / "a", format=file_format, lossless=True, exif=exif)
    picture = np.asarray(load_picture(tmp_path / "a"))
    assert [bytes(row).decode() for row in picture[:, :, 0]] == expected


def test_a_turned_photograph_is_noted(folder):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    add(folder, "2.png", colour="black", size=(64, 80), format="JPEG", exif=exif)
    assert read(folder).notes == (Note("2.png", "2.png was turned upright, as its camera noted."),)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    "exif", [b"garbage", b"MM\xff\x2a\0\0\0\x08", b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12", b""]
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_camera_data_does_no_harm(tmp_path, file_format, exif):
    add(tmp_path, "a.jpg", colour="white", format=file_format, exif=b"Exif\0\0" + exif)
    assert load_picture(tmp_path / "a.jpg").getpixel((0, 0)) == (255, 255, 255)


def test_a_photograph_is_turned_though_another_camera_entry_is_damaged(tmp_path):
    # Big-endian EXIF: orientation 6, and an x-resolution that claims to be text.
    entries = struct.pack(">HHIHH", ORIENTATION, 3, 1, 6, 0) + struct.pack(">HHI4s", 0x011A, 2, 4, b"abc\0")
    exif = b"Exif\0\0MM\0\x2a\0\0\0\x08" + struct.pack(">H", 2) + entries + bytes(4)
    add(tmp_path, "a.jpg", size=(40, 30), exif=exif)
    assert load_picture(tmp_path / "a.jpg").size == (30, 40)


def test_transparency_becomes_white(tmp_path):
    picture = Image.new("RGBA", (4, 1))
    for x, pixel in enumerate([(10, 20, 30, 255), (10, 20, 30, 0), (0, 0, 0, 128), (255, 0, 0, 51)]):
        picture.putpixel((x, 0), pixel)
    picture.save(tmp_path / "a.png")
    # 128 of 255 opaque black leaves 127 of white; 51 of 255 is a fifth of red.
    expected = [[10, 20, 30], [255, 255, 255], [127, 127, 127], [255, 204, 204]]
    assert np.asarray(load_picture(tmp_path / "a.png"))[0].tolist() == expected


@pytest.mark.parametrize("mode", ["P", "LA", "RGB", "L", "1"])
def test_transparency_of_every_kind_becomes_white(tmp_path, mode):
    """The left pixel is black and transparent, the right one is opaque."""
    path = tmp_path / "a.png"
    if mode == "LA":
        picture = Image.new("LA", (2, 1), (0, 255))
        picture.putpixel((0, 0), (0, 0))
        picture.save(path)
        right = 0
    elif mode == "P":
        picture = Image.new("P", (2, 1), 1)
        picture.putpalette([0, 0, 0, 0, 0, 0])
        picture.putpixel((0, 0), 0)
        picture.save(path, transparency=0)
        right = 0
    else:
        picture = Image.new(mode, (2, 1))
        picture.putpixel((1, 0), (200, 200, 200) if mode == "RGB" else 200)
        picture.save(path, transparency=(0, 0, 0) if mode == "RGB" else 0)
        right = 255 if mode == "1" else 200
    assert np.asarray(load_picture(path))[0].tolist() == [[255] * 3, [right] * 3]


def test_what_is_entirely_transparent_is_refused(tmp_path):
    Image.new("RGBA", (64, 64), (200, 10, 10, 0)).save(tmp_path / "a.png")
    message = "a.png is entirely transparent: nothing of it is to be seen. Save it with a background."
    assert refusal(tmp_path / "a.png") == message


def test_transparency_is_noted_only_where_it_shows(folder):
    Image.new("RGBA", (64, 64), (1, 2, 3, 255)).save(folder / "1.png")
    Image.new("RGBA", (64, 64), (4, 5, 6, 254)).save(folder / "2.png")
    assert read(folder).notes == (Note("2.png", "2.png has transparent parts: they became white."),)


def test_16_bit_grey_keeps_its_shades(folder):
    shades = np.zeros((64, 64), dtype=np.uint16)
    shades[0, :6] = [0, 255, 256, 32768, 65280, 65535]
    Image.fromarray(shades).save(folder / "1.png")
    picture = load_picture(folder / "1.png")
    assert np.asarray(picture)[0, :6].tolist() == [[value] * 3 for value in (0, 0, 1, 128, 255, 255)]
    assert messages(read(folder)) == ["1.png has 16 bits per pixel: they became 8."]


def test_16_bit_colour_keeps_its_colours(tmp_path):
    row = b"\0" + struct.pack(">6H", 32768, 65535, 0, 256, 512, 768)
    (tmp_path / "a.png").write_bytes(png(2, 1, 16, 2, row))
    assert np.asarray(load_picture(tmp_path / "a.png"))[0].tolist() == [[128, 255, 0], [1, 2, 3]]


def test_print_colours_become_rgb(folder):
    Image.new("CMYK", (64, 64), (0, 255, 255, 0)).save(folder / "1.png", format="JPEG", quality=100)
    picture = np.asarray(load_picture(folder / "1.png")).astype(int)
    assert abs(picture - [255, 0, 0]).max() <= 3  # magenta and yellow make red
    colours = "1.png has colours for print (CMYK): on a screen they may look a little different."
    assert messages(read(folder)) == [colours]


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_grey_and_palette_become_rgb_without_a_word(folder, mode):
    Image.new("RGB", (64, 64), "white").convert(mode).save(folder / "1.png")
    picture = load_picture(folder / "1.png")
    assert picture.mode == "RGB"
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert read(folder).notes == ()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_colour_profile_is_turned_into_srgb(tmp_path, mode):
    Image.new(mode, (8, 8), "red").save(tmp_path / "a.png", icc_profile=red_means_green())
    red, green, blue = load_picture(tmp_path / "a.png").getpixel((0, 0))
    assert (red < 3, green > 252, blue < 3) == (True, True, True)


def test_a_colour_profile_leaves_transparency_alone(tmp_path):
    picture = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    picture.putpixel((7, 7), (255, 0, 0, 255))
    picture.save(tmp_path / "a.png", icc_profile=red_means_green())
    red, green, _ = load_picture(tmp_path / "a.png").getpixel((7, 7))
    assert load_picture(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)
    assert red < 3 and green > 252


# Primaries as XYZ under the light of print (D50), and the number to which light rises.
DISPLAY_P3 = ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407)), None
ADOBE_RGB = (
    ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)),
    2.19921875,
)


def profile_of(primaries, gamma):
    """A colour profile as cameras write it: that of sRGB with other primaries, and with another curve."""

    def fixed(value):
        return struct.pack(">i", round(value * 65536))

    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    (count,) = struct.unpack(">I", profile[128:132])
    for entry in range(count):
        name, start, _ = struct.unpack(">4sII", profile[132 + 12 * entry : 144 + 12 * entry])
        if name in (b"rXYZ", b"gXYZ", b"bXYZ"):
            profile[start + 8 : start + 20] = b"".join(map(fixed, primaries[b"rgb".index(name[:1])]))
        if gamma and name == b"rTRC":  # the three share it: y = x^gamma of the form (ax + b)^gamma
            profile[start + 12 : start + 32] = b"".join(map(fixed, (gamma, 1, 0, 0, 0)))
    return bytes(profile)


@pytest.mark.parametrize(
    ("profile", "stored", "meant"),
    [
        # The reds, greens and blues of sRGB, as wider spaces write them.
        (DISPLAY_P3, (234, 51, 35), (255, 0, 0)),
        (DISPLAY_P3, (117, 251, 76), (0, 255, 0)),
        (DISPLAY_P3, (128, 128, 128), (128, 128, 128)),
        (DISPLAY_P3, (255, 0, 0), (255, 0, 0)),  # outside of sRGB: the nearest
        (ADOBE_RGB, (219, 0, 0), (255, 0, 0)),
        (ADOBE_RGB, (144, 255, 60), (0, 255, 0)),
        (ADOBE_RGB, (127, 127, 127), (128, 128, 128)),
    ],
)
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF", "WEBP", "AVIF"])
def test_the_colours_of_cameras_become_srgb(tmp_path, file_format, profile, stored, meant):
    picture = Image.new("RGB", (8, 8), stored)
    lossless = {"quality": 100} if file_format in ("JPEG", "AVIF") else {"lossless": True}
    picture.save(tmp_path / "a", format=file_format, icc_profile=profile_of(*profile), **lossless)
    found = np.array(load_picture(tmp_path / "a").getpixel((4, 4)))
    assert np.abs(found - meant).max() <= (9 if file_format in ("JPEG", "AVIF") else 4), found


def inks():
    """A profile of print in which all cyan, and nothing else, looks red: one cell of four inks' cube."""
    white, red, black = (255, 128, 128), (138, 209, 198), (0, 128, 128)  # Lab of 8 bits: L 54, a 81, b 70
    corners = [white, black, black, black, black, black, black, black, red, *[black] * 7]  # c is the slowest
    line = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0])
    table += b"".join(struct.pack(">i", 65536 * (n % 4 == 0)) for n in range(9))
    table += line * 4 + b"".join(map(bytes, corners)) + line * 3
    table += bytes(-len(table) % 4)
    head = struct.pack(">I4sI4s4s4s", 144 + len(table), bytes(4), 0x02400000, b"prtr", b"CMYK", b"Lab ")
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    tags = struct.pack(">I4sII", 1, b"A2B0", 144, len(table))
    return head.ljust(128, b"\0") + tags + table


def test_print_colours_with_a_profile_look_as_it_says(folder):
    Image.new("CMYK", (64, 64), (255, 0, 0, 0)).save(folder / "1.png", "TIFF", icc_profile=inks())
    assert np.abs(np.array(load_picture(folder / "1.png").getpixel((4, 4))) - [255, 0, 0]).max() <= 4
    assert read(folder).notes == ()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("profile", [b"garbage", red_means_green()], ids=["damaged", "of RGB"])
def test_a_useless_colour_profile_is_ignored(tmp_path, mode, profile):
    Image.new(mode, (8, 8)).save(tmp_path / "a.jpg", icc_profile=profile)
    expected = (255, 255, 255) if mode == "CMYK" else (0, 0, 0)
    assert load_picture(tmp_path / "a.jpg").getpixel((0, 0)) == expected


@pytest.mark.parametrize(("file_format", "mode"), [("JPEG", "L"), ("PNG", "1")])
def test_a_huge_picture_is_halved(folder, file_format, mode):
    picture = Image.new(mode, (7201, 7000))  # 50.4 million pixels
    picture.paste(255, (0, 0, 3600, 7000))
    picture.save(folder / "2.png", format=file_format)
    dataset = read(folder)
    assert dataset.notes == (Note("2.png", "2.png has 7201 x 7000 pixels: both sides were halved."),)
    halved = load_picture(folder / "2.png")
    assert halved.size == (3601, 3500)
    assert halved.getpixel((10, 10)) == (255, 255, 255)
    assert halved.getpixel((3590, 3490)) == (0, 0, 0)


@pytest.mark.parametrize(("size", "kept"), [((12000, 9000), (6000, 4500)), ((16320, 12240), (8160, 6120))])
def test_the_large_photographs_of_phones_are_read(tmp_path, size, kept):
    Image.new("L", size, 200).save(tmp_path / "a.jpg")  # grey takes a quarter of the memory
    picture, remarks = decode(tmp_path / "a.jpg", "a.jpg")
    assert (picture.size, picture.getpixel((9, 9))) == (kept, (200, 200, 200))
    assert remarks == [f"has {size[0]} x {size[1]} pixels: both sides were halved."]


def test_a_jpeg_has_its_limit_too(tmp_path):
    path = tmp_path / "a.jpg"
    for progressive, size, most in ((False, (16000, 16000), 250), (True, (12000, 9000), 89)):
        Image.new("L", (8, 8)).save(path, progressive=progressive)
        content = path.read_bytes()
        at = content.index(b"\xff\xc2" if progressive else b"\xff\xc0") + 5
        path.write_bytes(content[:at] + struct.pack(">HH", *size[::-1]) + content[at + 4 :])
        assert refusal(path) == f"a.jpg has more than {most} million pixels. Scale it down first."


def test_a_huge_jpeg_is_never_decoded_whole(tmp_path, monkeypatch):
    Image.new("L", (7201, 7000)).save(tmp_path / "a.jpg")
    monkeypatch.delattr(Image.Image, "reduce")
    assert load_picture(tmp_path / "a.jpg").size == (3601, 3500)


@posix_only
@pytest.mark.parametrize(("depth", "colour_type", "pixel"), [(16, 6, 8), (8, 2, 3)])
def test_a_picture_of_16_bits_and_transparency_takes_no_more_memory_than_another(
    tmp_path, depth, colour_type, pixel
):
    side = 9400  # 88 million pixels, 4 bytes each in Pillow: 353 MB, and a quarter of that when it is halved
    packer = zlib.compressobj(1)
    row = b"\0" + b"\x80" * (side * pixel)
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    (tmp_path / "a.png").write_bytes(png(side, side, depth, colour_type, rows, packed=True))
    measure = (
        "import resource, sys; from dopsd_app.data.pictures import load_picture;"
        "most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "before = most(); load_picture(sys.argv[1]); print(most() - before)"
    )
    command = [sys.executable, "-c", measure, str(tmp_path / "a.png")]
    kilobytes = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert kilobytes * 1024 < 1.4 * 4 * side**2


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_a_picture_is_halved_in_strips_as_at_once(mode):
    picture = Image.effect_noise((301, 777), 90).convert(mode)
    if mode != "RGB":
        picture.putalpha(Image.effect_noise((301, 777), 90))
    assert _halved(picture).tobytes() == picture.reduce(2).tobytes()


def test_a_long_picture_is_noted(folder):
    add(folder, "1.png", colour="black", size=(64, 128))
    add(folder, "2.png", colour="black", size=(129, 64))
    add(folder, "3.png", colour="black", size=(240, 80))  # 2 of 3 parts stay
    assert messages(read(folder)) == [
        "2.png is more than twice as long as it is wide: only its middle is used.",
        "3.png is far longer than it is wide: 33% of it falls away, and only its middle is used."
        " Move the crop where the subject is cut off.",
    ]
    (folder / "crops.json").write_text('{"focus": {"2.png": [0, 0.5], "3.png": [1, 0.5]}}')
    assert messages(read(folder)) == []  # whoever moved a crop has seen it


def test_what_training_enlarges_is_one_note(folder):
    for name, side in (("1.png", 256), ("2.png", 500), ("3.png", 1024), ("4.png", 2000)):
        add(folder, name, colour=COLOURS[int(name[0])], size=(side, side))
    [message] = messages(read_examples(folder, minimum_side=64, resolution=1024))
    assert message.startswith(
        "2 of 4 pictures are smaller than the 1024 x 1024 pixels of training and will be enlarged,"
        " 1.png 4.0 times"
    )
    assert messages(read_examples(folder, minimum_side=64, resolution=256)) == []
    [message] = messages(read_examples(folder, minimum_side=64, resolution=400))
    assert message.startswith("1.png is smaller than the 400 x 400 pixels") and "1.6 times" in message


def test_the_trigger_word_takes_the_place_that_other_trainers_keep_for_it(folder):
    (folder / "1.txt").write_text("a photo of [trigger]\n[Name] at home")
    dataset = fill_placeholders(read(folder), "zorp")
    assert captions(dataset)[:2] == [("a photo of zorp", "zorp at home"), ("picture 2",)]
    with pytest.raises(PicturesError, match=r"\[trigger\], and there is no trigger word"):
        fill_placeholders(read(folder), "")
    (folder / "1.txt").write_text("a photo")
    assert fill_placeholders(read(folder), "") == read(folder)


def test_several_captions_of_a_picture_are_told_in_one_note(folder):
    (folder / "2.txt").write_text("a cat that sleeps\nin the sun")
    (folder / "3.txt").write_text("one\ntwo\nthree")
    [message] = messages(read(folder))
    assert message.startswith("2.png has 2 captions, one per line (1 more has several): each step draws")


def test_several_repairs_of_one_picture_are_all_noted(folder):
    exif = Image.Exif()
    exif[ORIENTATION] = 8
    Image.new("RGBA", (64, 200), (9, 9, 9, 9)).save(folder / "1.png", exif=exif)
    assert [message.split(" ", 2)[2] for message in messages(read(folder))] == [
        "turned upright, as its camera noted.",
        "transparent parts: they became white.",
        "far longer than it is wide: 36% of it falls away, and only its middle is used."
        " Move the crop where the subject is cut off.",
    ]


# Copies


def test_a_copy_holds_the_repaired_pictures_and_reads_the_same(folder, tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[0x8825] = {1: "N", 2: (52.0, 31.0, 0.0)}  # where it was taken
    noise = Image.effect_noise((80, 64), 80).convert("RGB")
    noise.save(folder / "1.png", format="JPEG", exif=exif, icc_profile=red_means_green(), comment=b"secret")
    Image.new("RGBA", (64, 64), (9, 9, 9, 9)).save(folder / "2.png")
    (folder / "3.txt").write_text("\ufeffone\r\n\r\nà two\x07\n", encoding="utf-8")
    add(folder, "10.png", colour="gold", caption="ten")
    original = read(folder)
    copy_examples(original, tmp_path / "run" / "dataset")

    copied = read(tmp_path / "run" / "dataset")
    assert names(copied) == ["01.png", "02.png", "03.png", "04.png", "05.png"]
    assert captions(copied) == captions(original)
    assert [message.split(",")[0] for message in messages(copied)] == ["03.png has 2 captions"]
    assert (tmp_path / "run" / "dataset" / "03.txt").read_bytes() == "one\nà two\n".encode()
    for before, after in zip(original.examples, copied.examples, strict=True):
        assert load_picture(before.image).tobytes() == load_picture(after.image).tobytes()
        with Image.open(after.image) as written:
            assert (written.format, written.mode, written.info, dict(written.getexif())) == (
                "PNG",
                "RGB",
                {},
                {},
            )


def test_a_copy_of_metadata_captions_reads_the_same(folder, tmp_path):
    rows = rows_of(folder)
    rows[0]["text"] = ["one\ntwo", "three\u2028four", "five \x85six"]
    write_metadata(folder, *rows)
    original = read(folder)
    copy_examples(original, tmp_path / "copy")
    assert captions(read(tmp_path / "copy")) == captions(original)


def test_copies_never_mix_with_what_is_there(folder, tmp_path):
    dataset = read(folder)
    copy_examples(dataset, tmp_path / "copy")
    with pytest.raises(FileExistsError):
        copy_examples(dataset, tmp_path / "copy")


# Shapes


def test_a_crop_is_the_middle_and_nothing_is_stretched():
    picture = Image.new("RGB", (4, 2), "blue")
    picture.paste("red", (1, 0, 3, 2))
    assert np.asarray(crop(picture, 2, 2)).tolist() == [[[255, 0, 0]] * 2] * 2
    tall = picture.transpose(Image.Transpose.ROTATE_90)
    assert np.asarray(crop(tall, 2, 2)).tolist() == [[[255, 0, 0]] * 2] * 2


def test_a_crop_lies_where_it_was_moved():
    picture = Image.new("RGB", (4, 2), "blue")
    picture.paste("red", (2, 0, 4, 2))
    assert crop(picture, 2, 2, (0, 0.5)).getcolors() == [(4, (0, 0, 255))]
    assert crop(picture, 2, 2, (1, 0)).getcolors() == [(4, (255, 0, 0))]
    assert crop(picture, 2, 2, (0.5, 0.5)).tobytes() == crop(picture, 2, 2).tobytes()


@pytest.mark.parametrize(
    ("size", "aspect", "focus", "box", "lost"),
    [
        ((400, 200), 1, (0.5, 0.5), (0.25, 0, 0.75, 1), 0.5),
        ((400, 200), 1, (0, 0.3), (0, 0, 0.5, 1), 0.5),
        ((400, 200), 1, (1, 1), (0.5, 0, 1, 1), 0.5),
        ((300, 400), 1, (0.5, 1), (0, 0.25, 1, 1), 0.25),
        ((300, 400), 1.5, (0.5, 0), (0, 0, 1, 0.5), 0.5),
        ((640, 480), 4 / 3, (0, 1), (0, 0, 1, 1), 0),
    ],
)
def test_what_a_crop_keeps_of_a_picture(size, aspect, focus, box, lost):
    assert crop_box(size, aspect, focus) == pytest.approx(box)
    assert lost_share(size, aspect) == pytest.approx(lost)


def test_moved_crops_are_kept_beside_the_pictures(folder, tmp_path):
    copy_examples(read(folder), tmp_path / "plain")
    assert not (tmp_path / "plain" / "crops.json").exists()
    (folder / "crops.json").write_text('{"focus": {"2.png": [0, 0.75]}}')
    dataset = read(folder)
    middle = (0.5, 0.5)
    assert [example.focus for example in dataset.examples] == [middle, (0, 0.75), middle, middle]
    copy_examples(dataset, tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / "crops.json").read_bytes())["focus"] == {"02.png": [0, 0.75]}
    assert [example.focus for example in read(tmp_path / "copy").examples] == [
        example.focus for example in dataset.examples
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "crops.json cannot be read. Remove it"),
        ("[]", "crops.json holds no crops. Remove it"),
        ('{"schema": "x", "focus": {}}', "crops.json holds no crops. Remove it"),
        (
            '{"focus": {"1.png": [0, 2]}}',
            "crops.json, 1.png: The place of a crop is two numbers between 0 and 1",
        ),
        ('{"schema": 2, "focus": {}}', "crops.json was made by a later version of this program"),
    ],
)
def test_a_file_of_crops_that_cannot_be_used_is_refused(folder, content, message):
    (folder / "crops.json").write_text(content)
    [problem] = problems_of(folder)
    assert message in problem.message


def test_a_moved_crop_of_a_missing_picture_is_told(folder):
    (folder / "crops.json").write_text('{"focus": {"9.png": [0, 0]}}')
    assert read(folder).notes == (Note("", "crops.json names 9.png, which is not there."),)


def test_a_crop_covers_its_size_from_smaller_and_larger_pictures():
    for size in ((30, 50), (64, 64), (300, 200)):
        cropped = crop(Image.new("RGB", size, "teal"), 48, 64)
        assert cropped.size == (64, 48)
        assert cropped.getcolors() == [(64 * 48, (0, 128, 128))]
