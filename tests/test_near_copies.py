"""Pictures of a set that are nearly the same."""

from itertools import combinations

import pytest
from PIL import Image, ImageEnhance

from dopsd_app.data.near_copies import NEAR, bits_between, fingerprint, near_copies
from dopsd_app.data.pictures import PictureFacts, check_set, read_examples
from dopsd_app.data.uploads import EXAMPLES
from tests.support.pictures import make_picture


@pytest.mark.parametrize("seed", range(5))
def test_a_picture_stays_near_itself_smaller_darker_and_cut_by_a_hair(seed):
    picture = make_picture(seed, 4, 4).resize((400, 300), Image.Resampling.BICUBIC)
    smaller, darker = picture.resize((100, 75)), ImageEnhance.Brightness(picture).enhance(0.8)
    cut = picture.crop((3, 2, 398, 299))
    for other in (smaller, darker, cut):
        assert bits_between(fingerprint(picture), fingerprint(other)) <= NEAR


def test_different_pictures_are_far_from_each_other():
    prints = [fingerprint(make_picture(seed, 64, 64)) for seed in range(12)]
    assert min(bits_between(*pair) for pair in combinations(prints, 2)) > NEAR
    for folder in EXAMPLES.iterdir():  # creatures on plain backgrounds, in different places
        pictures = [Image.open(file).convert("RGB") for file in sorted(folder.glob("*.png"))]
        pairs = combinations(map(fingerprint, pictures), 2)
        assert min(bits_between(*pair) for pair in pairs) > NEAR


def test_bits_are_counted():
    assert bits_between("00000000000000ff", "000000000000000f") == 4
    assert bits_between("8000000000000000", "0000000000000001") == 2


def test_a_plain_picture_is_like_no_other():
    assert fingerprint(Image.new("RGB", (64, 64), (40, 90, 200))) == ""
    assert not list(near_copies([("a", ""), ("b", "")]))


def test_each_is_named_with_the_first_that_is_near():
    prints = [("a", "0" * 16), ("b", "f" * 16), ("c", "0" * 13 + "3ff"), ("d", "0" * 13 + "7ff")]
    # c differs from a in 10 bits, d in 11 from a, and in 1 from c
    assert list(near_copies(prints)) == [("c", "a"), ("d", "c")]


def test_it_is_a_note_on_the_picture_and_an_equal_one_stays_a_problem():
    facts = [
        PictureFacts("1.png", (64, 64), "x", fingerprint="0" * 16),
        PictureFacts("2.png", (64, 64), "y", fingerprint="0" * 15 + "1"),
        PictureFacts("3.png", (64, 64), "x", fingerprint="0" * 16),
    ]
    assert [finding.message for finding in check_set(facts, 16)] == [
        "2.png is nearly the same picture as 1.png: one that differs teaches more.",
        "3.png is the same picture as 1.png. Remove one of them.",
    ]


def test_a_folder_is_looked_at_too(tmp_path):
    for number in range(4):
        make_picture(number, 64, 64).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("zorp")
    make_picture(2, 60, 60).save(tmp_path / "4.png")
    (tmp_path / "4.txt").write_text("zorp")
    notes = [note.message for note in read_examples(tmp_path, minimum_side=32).notes]
    assert "4.png is nearly the same picture as 2.png: one that differs teaches more." in notes
