"""Tools that change all captions at once: each returns what it changed, by picture."""

import pytest

from dopsd_app.data.caption_tools import (
    CaptionToolError,
    fill_pattern,
    join_lines,
    put_trigger_first,
    read_table,
    replace_words,
    wrapped,
)


def test_a_pattern_fills_captions_with_the_trigger_word():
    captions = {"a": "", "b": "a photo of zorp"}
    assert fill_pattern(captions, " a photo  of [trigger]", "zorp") == {"a": "a photo of zorp"}
    assert fill_pattern({"a": ""}, "a plain wall", "") == {"a": "a plain wall"}


@pytest.mark.parametrize(("pattern", "trigger_word"), [("  ", "zorp"), ("a photo of [trigger]", "")])
def test_a_pattern_that_cannot_be_filled_is_refused_in_words(pattern, trigger_word):
    with pytest.raises(CaptionToolError, match="Write"):
        fill_pattern({"a": ""}, pattern, trigger_word)


def test_the_trigger_word_comes_first_once_and_in_every_line():
    captions = {"a": "in a garden\nby the sea", "b": "zorp at home", "c": "", "d": "zorps at home"}
    assert put_trigger_first(captions, "zorp") == {
        "a": "zorp, in a garden\nzorp, by the sea",
        "d": "zorp, zorps at home",
    }


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("[trigger] on grass", "zorp on grass"),
        ("[Name], on grass", "zorp, on grass"),
        ("Zorp on grass", "zorp on grass"),
        ("Zorps on grass", "zorp, Zorps on grass"),
        ("ZORP", "zorp"),
    ],
)
def test_a_caption_that_begins_with_the_trigger_word_in_another_spelling_gets_no_second(before, after):
    assert put_trigger_first({"a": before}, "zorp") == {"a": after}


@pytest.mark.parametrize(
    ("before", "find", "after"),
    [
        ("a catalog of cats", "cat", None),
        ("a cat, a Cat", "cat", "a dog, a dog"),
        ("小猫在家", "猫", "小dog在家"),
        ("cat가 있다", "cat", "dog가 있다"),
        ("a red, a", ", a", "a reddog"),
    ],
)
def test_only_whole_words_are_replaced_where_words_stand_apart(before, find, after):
    assert replace_words({"a": before}, find, "dog") == ({"a": after} if after else {})


def test_words_are_replaced_whatever_their_capitals():
    captions = {"a": "A Dog by a dog", "b": "a cat", "c": "the dog"}
    assert replace_words(captions, "dog", "zorp") == {"a": "A zorp by a zorp", "c": "the zorp"}
    assert replace_words({"a": "very big dog"}, "big", "") == {"a": "very dog"}
    assert replace_words({"a": "costs 5"}, "5", r"\1") == {"a": r"costs \1"}


def test_lines_of_a_caption_are_counted_and_joined():
    captions = {"a": "one\n two ", "b": "one", "c": "\n"}
    assert wrapped(captions) == {"a"}
    assert join_lines(captions) == {"a": "one two"}


@pytest.mark.parametrize(
    "table",
    [
        "file_name\ttext\n1.png\tzorp, by the sea\n2\tzorp\nother.png\tx",
        "1.png,zorp, by the sea\n2.png,zorp\nother.png,x",
        '1.PNG;"zorp, by the sea"\nmine/2.png;zorp\nother.png;x',
        "1.png\tzorp, by the sea\r2.png\tzorp\rother.png\tx",
        '1.png\t"zorp,\nby the sea"\r\n2.png\tzorp\r\nother.png\tx',
    ],
)
def test_a_table_gives_captions_by_file_name(table):
    captions, unknown = read_table(table, {"1.png": "a", "2.png": "b"})
    assert captions == {"a": "zorp, by the sea", "b": "zorp"}
    assert unknown == ["other.png"]


@pytest.mark.parametrize(
    "caption", ["one; two\tthree", 'a 12" record', '"', '"so', 'a "big" dog', '"so", "that"']
)
def test_signs_of_tables_within_captions_part_nothing(caption):
    names = {"1.png": "a", "2.png": "b"}
    captions, unknown = read_table(f"1.png,{caption}\n2.png,{caption}", names)
    assert set(captions) == {"a", "b"} and not unknown
    assert captions["a"] == captions["b"]


def test_a_table_that_csv_cannot_read_is_refused_in_words():
    with pytest.raises(CaptionToolError, match="too long"):
        read_table("1.png," + "x" * 200_000, {"1.png": "a"})


def test_a_table_tells_endings_apart():
    names = {"1.png": "a", "1.jpg": "b"}
    assert read_table("1.png,png\n1.jpg,jpg\n1,which?", names) == ({"a": "png", "b": "jpg"}, ["1"])


@pytest.mark.parametrize("table", ["", "just words", "other.png\tx"])
def test_a_table_of_nothing_is_refused_in_words(table):
    with pytest.raises(CaptionToolError):
        read_table(table, {"1.png": "a"})
