"""Captions and folders as people and other programs leave them: what is read, and what is said."""

import json

import pytest
from PIL import Image

from dopsd_app.data.picture_file import PicturesError
from dopsd_app.data.pictures import read_examples
from dopsd_app.data.source_pictures import has_sources

COLOURS = ["red", "green", "blue", "orange"]


def add(folder, *, start=0, captions=True, count=4, suffix=".txt"):
    """Pictures 1.png, 2.png, ... with captions beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        Image.new("RGB", (64, 64), (start, 40 * number, 90)).save(folder / f"{number}.png")
        if captions:
            (folder / f"{number}{suffix}").write_text(f"picture {number}", encoding="utf-8")
    return folder


def read(folder):
    return read_examples(folder, minimum_side=64)


def captions(folder):
    return [example.captions for example in read(folder).examples]


def notes(folder):
    return [note.message for note in read(folder).notes]


def problems(folder):
    with pytest.raises(PicturesError) as caught:
        read(folder)
    return [problem.message for problem in caught.value.problems]


FOUR = [(f"picture {number}",) for number in range(1, 5)]


# Caption files


@pytest.mark.parametrize("suffix", [".txt", ".caption", ".TXT", ".png.txt", ".png.caption"])
def test_captions_lie_beside_their_pictures_under_several_names(tmp_path, suffix):
    folder = add(tmp_path / "a", suffix=suffix)
    assert captions(folder) == FOUR
    assert notes(folder) == []


@pytest.mark.parametrize(
    "content", ['{"caption": "X"}', '{"text": ["X"], "n": 1}', '{"prompt": "X"}', '"X"', '["X"]']
)
def test_a_caption_may_stand_in_json(tmp_path, content):
    folder = add(tmp_path / "a")
    (folder / "1.txt").unlink()
    (folder / "1.json").write_text(content.replace("X", "a cat"))
    assert captions(folder)[0] == ("a cat",)


@pytest.mark.parametrize("content", ['{"seed": 7}', "{", "[]", '{"caption": 3}'])
def test_json_without_a_caption_is_told(tmp_path, content):
    folder = add(tmp_path / "a")
    (folder / "1.txt").unlink()
    (folder / "1.json").write_text(content)
    assert problems(folder) == ["1.json holds no caption: none under “caption” or “text”."]


def test_of_several_files_the_text_counts_and_the_others_are_told(tmp_path):
    folder = add(tmp_path / "a")
    (folder / "1.json").write_text('{"seed": 7}')
    (folder / "2.caption").write_text("another")
    assert captions(folder) == FOUR
    assert notes(folder) == [
        "2.caption belongs to no picture and was left out.",
        "1.json belongs to no picture and was left out.",
    ]


def test_captions_with_the_pictures_whole_names_tell_apart_what_is_called_alike(tmp_path):
    folder = add(tmp_path / "a", captions=False)
    Image.new("RGB", (64, 64), "white").save(folder / "1.jpg")
    for name in ("1.png", "1.jpg", "2.png", "3.png", "4.png"):
        (folder / f"{name}.txt").write_text(name)
    assert captions(folder) == [("1.jpg",), ("1.png",), ("2.png",), ("3.png",), ("4.png",)]


def test_documents_and_backups_are_no_pictures(tmp_path):
    folder = add(tmp_path / "a")
    for name in ("0.JPG.bak", "5.png.part", "6.png~"):
        (folder / name).write_bytes((folder / "1.png").read_bytes())
    for name in ("README.md", "LICENSE", "README.txt"):
        (folder / name).write_text("about")
    assert captions(folder) == FOUR
    assert notes(folder) == [
        "0.JPG.bak is a backup and was left out.",
        "5.png.part is a backup and was left out.",
        "6.png~ is a backup and was left out.",
        "LICENSE is not a picture and was left out.",
        "README.md is not a picture and was left out.",
        "README.txt is about the pictures and was left out.",
    ]


# Tables


def rows(name_column="file_name", text_column="text", name="{}.png"):
    return [{name_column: name.format(number), text_column: f"picture {number}"} for number in range(1, 5)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.jsonl", "\n".join(map(json.dumps, rows("image", "caption")))),
        ("metadata.jsonl", "\n".join(map(json.dumps, rows(name=".\\{}.png")))),
        ("metadata.jsonl", "\n".join(map(json.dumps, rows(name="{}.PNG")))),
        ("metadata.jsonl", json.dumps(rows())),
        ("metadata.json", json.dumps(rows("file", "prompt"), indent=1)),
        ("metadata.json", json.dumps({row["file_name"]: row["text"] for row in rows()})),
        ("metadata.json", json.dumps({row["file_name"]: {"caption": row["text"]} for row in rows()})),
        ("metadata.csv", "file_name,text\r\n" + "".join(f"{n}.png,picture {n}\r\n" for n in range(1, 5))),
        (
            "metadata.csv",
            "\ufefffile_name;caption\n" + "".join(f'{n}.png;"picture {n}"\n' for n in range(1, 5)),
        ),
    ],
)
def test_tables_of_several_forms_are_read(tmp_path, name, content):
    folder = add(tmp_path / "a", captions=False)
    (folder / name).write_text(content, encoding="utf-8")
    assert captions(folder) == FOUR
    assert notes(folder) == []


def test_a_table_of_a_spreadsheet_names_its_lines(tmp_path):
    folder = add(tmp_path / "a", captions=False)
    (folder / "metadata.csv").write_text(
        "file_name,text\n1.png,one\n9.png,nine\n2.png\n3.png,three\n4.png,x\n"
    )
    assert problems(folder) == [
        "Line 3 of metadata.csv names 9.png, which is not there. Add the picture or remove the line.",
        "The caption of 2.png is missing or is not text. Write what the picture shows.",
    ]


def test_a_caption_of_a_csv_may_hold_the_commas_that_part_cells(tmp_path):
    folder = add(tmp_path / "a", captions=False)
    lines = "".join(f"{number}.png,picture {number}, on grass,\n" for number in range(1, 5))
    (folder / "metadata.csv").write_text("file_name,text\n" + lines)
    assert captions(folder)[0] == ("picture 1, on grass,",)
    (folder / "metadata.csv").write_text("text,file_name\n" + "a dog, on grass,1.png\n")
    assert "Line 2 of metadata.csv" in problems(folder)[0]


def test_a_table_may_name_what_pictures_start_from(tmp_path):
    folder = add(tmp_path / "a", captions=False)
    Image.new("RGB", (64, 64), "white").save(folder / "before.png")
    lines = "".join(f"{n}.png,do it,before.png\n" for n in range(1, 5))
    (folder / "metadata.csv").write_text(f"file_name,text,source\n{lines}")
    assert [[path.name for path in example.source_images] for example in read(folder).examples] == [
        ["before.png"]
    ] * 4
    assert has_sources(folder)


# Folders


def test_kohyas_folders_are_read_together_without_their_numbers(tmp_path):
    add(tmp_path / "a" / "10_zorp creature", count=3)
    add(tmp_path / "a" / "5_zorp", start=50, count=2)
    found = read(tmp_path / "a")
    assert [example.image.relative_to(tmp_path / "a").as_posix() for example in found.examples] == [
        "5_zorp/1.png",
        "5_zorp/2.png",
        "10_zorp creature/1.png",
        "10_zorp creature/2.png",
        "10_zorp creature/3.png",
    ]
    number = "The number before a folder's name was ignored: the steps say how often a picture is seen."
    assert [note.message for note in found.notes] == [number]


@pytest.mark.parametrize("below", ["train", "img/10_zorp", "my dog"])
def test_the_only_folder_with_pictures_is_taken(tmp_path, below):
    add(tmp_path / "a" / below)
    (tmp_path / "a" / "empty").mkdir()
    (tmp_path / "a" / "README.md").write_text("x")
    assert captions(tmp_path / "a") == FOUR
    first = notes(tmp_path / "a")[0]
    assert first == f"The pictures are those in {below}: there are none in the folder itself."


def test_of_the_folders_of_a_data_set_that_of_training_is_taken(tmp_path):
    add(tmp_path / "a" / "train")
    add(tmp_path / "a" / "test", start=99)
    assert captions(tmp_path / "a") == FOUR


def test_of_several_folders_the_person_chooses(tmp_path):
    add(tmp_path / "a" / "cats")
    add(tmp_path / "a" / "dogs", start=99)
    assert problems(tmp_path / "a")[0] == (
        "There are no pictures in the folder itself, but in several below: cats, dogs. Give one of them."
    )


def test_a_folder_of_links_as_the_hub_keeps_it_is_read(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / ("0" * 40) / "train"
    add(blobs)
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert captions(snapshot.parent) == FOUR


@pytest.mark.parametrize("name", ["фото", "照片", "صورة", "तस्वीर", "📷"])
def test_names_in_any_script_are_kept(tmp_path, name):
    folder = add(tmp_path / name)
    (folder / "1.png").rename(folder / f"{name}.png")
    (folder / "1.txt").rename(folder / f"{name}.txt")
    assert {example.image.name for example in read(folder).examples} >= {f"{name}.png"}
