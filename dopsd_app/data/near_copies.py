"""Finds pictures of a set that are nearly the same: frames of a burst, a picture and its smaller copy."""

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

SIDE = 32  # pixels to which a picture is made smaller: details are no difference
LOW = 8  # of its frequencies in each direction that count
# Bits that differ, of 64. Of 16 sample photographs of scikit-image and scikit-learn, copies in other sizes,
# qualities and brightness, and cut by 2 % at each side, differ in up to 8, and a stereo camera's two pictures
# in 4; different ones differ in 20 or more, and the example sets' creatures in 16.
NEAR = 10
# A picture without any stronger frequency, one grey level of 255, shows nothing that could be compared.
FLAT = 500.0


def fingerprint(picture: Image.Image) -> str:
    """What a picture looks like, in 16 hexadecimal digits, of which near copies share most bits.

    The signs of the lowest frequencies of its brightness: a perceptual hash, as in C. Zauner, "Implementation
    and Benchmarking of Perceptual Image Hash Functions", 2010. Empty for a plain picture.
    """
    small = picture.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    waves = _waves()
    frequencies = waves @ np.asarray(small, np.float32) @ waves.T
    if np.abs(frequencies.flat[1:]).max() < FLAT:
        return ""
    bits = frequencies > np.median(frequencies)
    return np.packbits(bits).tobytes().hex()


def bits_between(one: str, other: str) -> int:
    """In how many of their 64 bits two fingerprints differ."""
    return (int(one, 16) ^ int(other, 16)).bit_count()


def near_copies(fingerprints: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The names of pictures that are nearly the same as an earlier one, each with the first such one's.

    Of pairs of name and fingerprint; what has none, as in drafts of earlier versions, is left out.
    """
    # As numbers: a page asks after every word that is typed, and 200 pictures are 20,000 pairs.
    numbers = [(name, int(digits, 16)) for name, digits in fingerprints if digits]
    for place, (name, number) in enumerate(numbers):
        for other, known in numbers[:place]:
            if (number ^ known).bit_count() <= NEAR:
                yield name, other
                break


def _waves() -> np.ndarray:
    """The lowest cosines of a DCT, one per row. (LOW, SIDE)"""
    places, numbers = np.arange(SIDE) + 0.5, np.arange(LOW)
    return np.cos(np.pi / SIDE * numbers[:, None] * places).astype(np.float32)
