"""The crop of a picture: its shape, where it lies, and the file of a data set that keeps what was moved."""

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageOps

from dopsd_app.data.picture_file import shown
from dopsd_app.errors import KnownFailure
from dopsd_app.schema import check_schema, stamp

CROPS_FILE = "crops.json"  # beside the pictures, only where a crop was moved
SCHEMA = 1  # of CROPS_FILE
MIDDLE = (0.5, 0.5)
# Width and height of the buckets' shapes, as `generate_aspect_ratio_buckets` of diffusers has them: its
# module brings torch, and the page shows crops without it.
SHAPES = ((1, 1), (4, 5), (5, 4), (2, 3), (3, 2), (3, 4), (4, 3), (9, 16), (16, 9), (1, 2), (2, 1))


# Each picture of a set asks for them, at every key that is pressed.
@functools.cache
def list_buckets(resolution: int, multiple: int) -> tuple[tuple[int, int], ...]:
    """The (height, width) in pixels that pictures are cropped to: about `resolution` squared of area."""

    def side(length: float) -> int:
        return max(multiple, round(length / multiple) * multiple)

    heights = [
        ((resolution * resolution / (width / height)) ** 0.5, width / height) for width, height in SHAPES
    ]
    return tuple(dict.fromkeys((side(height), side(height * aspect)) for height, aspect in heights))


def nearest_bucket(width: int, height: int, resolution: int, multiple: int) -> tuple[int, int]:
    """The (height, width) in pixels to crop a picture to: the bucket that keeps most of it.

    The shape is within 1:2 and 2:1, each side a multiple of `multiple`.
    """
    # The `find_nearest_bucket` of diffusers compares areas too: near the middle between two buckets it takes
    # the smaller one, though that cuts off more.
    buckets = list_buckets(resolution, multiple)
    return min(buckets, key=lambda size: abs(math.log(size[1] / size[0]) - math.log(width / height)))


def crop(picture: Image.Image, height: int, width: int, focus: tuple[float, float] = MIDDLE) -> Image.Image:
    """Scales a picture until it covers height x width pixels and cuts off what sticks out.

    `focus` says where the crop lies, from left to right and from top to bottom: (0, 0) keeps the left and
    the top, (0.5, 0.5) the middle.
    """
    return ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS, centering=focus)


def crop_box(
    size: tuple[int, int], aspect: float, focus: tuple[float, float] = MIDDLE
) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the crop in shares of the picture.

    `size` is the picture's width and height, `aspect` the crop's width by its height.
    """
    kept = aspect / (size[0] / size[1])  # of the width, where it is less than 1
    across, down = min(kept, 1), min(1 / kept, 1)
    left, top = (1 - across) * focus[0], (1 - down) * focus[1]
    return left, top, left + across, top + down


def cut_to(picture: Image.Image, aspect: float, focus: tuple[float, float] = MIDDLE) -> Image.Image:
    """The crop of a picture in its own pixels: what `crop` shows, before that scales it."""
    width, height = picture.size
    left, top, right, bottom = crop_box(picture.size, aspect, focus)
    sides = (left * width, top * height, right * width, bottom * height)
    return picture.crop((round(sides[0]), round(sides[1]), round(sides[2]), round(sides[3])))


def lost_share(size: tuple[int, int], aspect: float) -> float:
    """How much of a picture's area falls away in the crop, from 0 to 1."""
    kept = aspect / (size[0] / size[1])
    return 1 - min(kept, 1 / kept)


def check_focus(focus: object) -> tuple[float, float]:
    """The place of a crop as it was given, from anywhere; ValueError for what is none."""
    if not isinstance(focus, list | tuple) or len(focus) != 2:
        raise ValueError("The place of a crop is two numbers between 0 and 1.")
    across, down = focus
    if not all(isinstance(share, int | float) and 0 <= share <= 1 for share in (across, down)):
        raise ValueError("The place of a crop is two numbers between 0 and 1.")
    return float(across), float(down)


def write_crops(folder: Path, focuses: Mapping[str, tuple[float, float]]) -> None:
    """Keeps where crops lie, by the pictures' file names; writes nothing where all lie in the middle."""
    moved = {name: list(focus) for name, focus in focuses.items() if focus != MIDDLE}
    if moved:
        content = json.dumps(stamp(SCHEMA) | {"focus": moved}, indent=1)
        (folder / CROPS_FILE).write_text(f"{content}\n", encoding="utf-8", newline="\n")


def read_crops(folder: Path) -> dict[str, tuple[float, float]]:
    """Where the moved crops of a folder's pictures lie, by file name; KnownFailure for a damaged file."""
    try:
        stored = json.loads((folder / CROPS_FILE).read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise KnownFailure(
            f"{CROPS_FILE} cannot be read. Remove it: the crops then lie in the middle."
        ) from error
    try:
        if not isinstance(stored, dict) or not isinstance(stored.get("focus"), dict):
            raise ValueError("This is no object with places of crops.")
        check_schema(stored, SCHEMA, CROPS_FILE)
    except KnownFailure:
        raise
    except ValueError as error:
        raise KnownFailure(f"{CROPS_FILE} holds no crops. Remove it: they then lie in the middle.") from error
    focuses = {}
    for name, focus in stored["focus"].items():
        try:
            focuses[name] = check_focus(focus)
        except ValueError as error:
            raise KnownFailure(f"{CROPS_FILE}, {shown(name)}: {error}") from error
    return focuses
