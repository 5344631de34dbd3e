"""Turns a HEIC into a PNG, as a program of its own: libheif ends its process over some damaged files.

`python heif_process.py SOURCE TARGET MOST`; it ends with TOO_MANY for more than MOST pixels.
"""

import sys

import pi_heif
from PIL import Image

TOO_MANY = 3


def convert(source: str, target: str, most: int) -> int:
    """Writes the file's main picture, upright and of 8 bits for each colour, with its colour profile."""
    pi_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)
    Image.MAX_IMAGE_PIXELS = None  # MOST stands in its place
    with Image.open(source, formats=["HEIF"]) as picture:
        if picture.width * picture.height > most:
            return TOO_MANY
        picture.save(target, "PNG", compress_level=0, icc_profile=picture.info.get("icc_profile"))
    return 0


if __name__ == "__main__":
    sys.exit(convert(sys.argv[1], sys.argv[2], int(sys.argv[3])))
