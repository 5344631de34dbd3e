"""One picture file: what it is, the repairs that it gets, and why it may be refused."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import cast

from PIL import ExifTags, Image, ImageCms

from dopsd_app.data.picture_formats import (
    DAMAGED,
    HALVED_ABOVE,
    MAX_PIXELS,
    Unreadable,
    load,
    picture_format,
)
from dopsd_app.errors import KnownFailure

STRIP = 256  # rows that are halved at once: an even number

_TURNS = {  # EXIF orientation: how the picture becomes upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Problem:
    picture: str  # its file name, seen from the folder; "" when the set is meant or a file that is no picture
    message: str  # a sentence or two: which file, what is wrong, what to do
    # Whether all that lacks is a caption, or one that is short enough.
    caption: bool = field(default=False, compare=False)
    typed: str = field(default="", compare=False)  # the caption that is too long


class PicturesError(KnownFailure):
    """All that must be put right before these pictures can be used; as text, one problem per line."""

    def __init__(self, problems: Iterable[Problem]):
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(problem.message for problem in self.problems)


def load_picture(path: str | Path) -> Image.Image:
    """Opens a picture as all of the app sees it: upright, 8-bit sRGB, on white; or raises PicturesError."""
    picture, _ = decode(Path(path), shown(Path(path).name))
    return picture


def decode(path: Path, name: str) -> tuple[Image.Image, list[str]]:
    """The repaired picture, and remarks on the repairs: the rest of a sentence that begins with the name."""

    def refusal(message: str) -> PicturesError:
        return PicturesError([Problem(name, f"{name} {message}")])

    kind = picture_format(path)
    if not kind:
        raise refusal("cannot be read as a picture. Save it again as JPEG or PNG, or remove it.")
    try:
        picture, remarks = load(path, kind)
        repaired, repairs = _repair(picture)
    except Unreadable as error:
        raise refusal(str(error)) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise refusal(f"has more than {MAX_PIXELS // 10**6} million pixels. Scale it down first.") from error
    except DAMAGED as error:
        raise refusal("is damaged or incomplete. Download or save it again.") from error
    return repaired, remarks + repairs


def _repair(picture: Image.Image) -> tuple[Image.Image, list[str]]:
    remarks = []
    profile, turn = picture.info.get("icc_profile"), _TURNS.get(_orientation(picture))
    if picture.mode == "I;16":
        remarks.append("has 16 bits per pixel: they became 8.")
        picture = picture.point(lambda value: value / 256).convert("L")  # convert alone cuts off at 255
    elif picture.mode.startswith("I;16"):  # of a TIFF, in another order of bytes
        remarks.append("has 16 bits per pixel: they became 8.")
        picture = picture.convert("I").point(lambda value: value / 256).convert("L")
    if picture.has_transparency_data and picture.mode != "RGBA":  # to convert it to itself would copy it
        picture = picture.convert("RGBA")
    elif picture.mode in ("1", "P"):
        picture = picture.convert("RGB")
    if picture.width * picture.height > HALVED_ABOVE:
        large, picture = picture, _halved(picture)
        large.close()  # its caller would keep it until the end: hundreds of megabytes
    if turn is not None:
        remarks.append("was turned upright, as its camera noted.")
        picture = picture.transpose(turn)
    printed = picture.mode == "CMYK"
    if profile:
        picture = _to_srgb(picture, profile)
    if printed and picture.mode == "CMYK":  # no profile tells what its inks look like
        remarks.append("has colours for print (CMYK): on a screen they may look a little different.")
    if picture.mode == "RGBA":
        picture, flattened = _on_white(picture)
        remarks += flattened
    else:
        picture = picture.convert("RGB")
    picture.info = {}  # or Pillow would write a profile that no longer holds into the next file
    return picture, remarks


def _on_white(picture: Image.Image) -> tuple[Image.Image, list[str]]:
    """A picture with transparent parts, on white; `Unreadable` where nothing of it is to be seen."""
    alpha = picture.getchannel("A")
    least, most = cast(tuple[float, float], alpha.getextrema())  # of one band, it is a pair of numbers
    if most == 0:
        raise Unreadable("is entirely transparent: nothing of it is to be seen. Save it with a background.")
    flat = Image.new("RGB", picture.size, "white")
    flat.paste(picture, mask=alpha)
    return flat, ["has transparent parts: they became white."] if least < 255 else []


def _halved(picture: Image.Image) -> Image.Image:
    """`picture.reduce(2)`, strip by strip: Pillow first copies what it reduces, where it is transparent."""
    width, height = picture.size
    half = Image.new(picture.mode, ((width + 1) // 2, (height + 1) // 2))
    for top in range(0, height, STRIP):
        strip = picture.crop((0, top, width, min(top + STRIP, height)))
        half.paste(strip.reduce(2), (0, top // 2))
    return half


def _orientation(picture: Image.Image) -> int:
    # Not ImageOps.exif_transpose: it rewrites all EXIF data, and fails over any damaged entry.
    try:
        return picture.getexif().get(ExifTags.Base.Orientation, 1)
    except (OSError, SyntaxError, ValueError):
        return 1


def _to_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    mode = "RGBA" if picture.mode == "RGBA" else "RGB"
    try:
        converted = ImageCms.profileToProfile(
            picture, BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode=mode
        )
    except ImageCms.PyCMSError:  # a damaged profile, or one for other kinds of pictures: nobody heeds those
        return picture
    assert converted is not None  # as only where it is asked to change the picture itself
    return converted


def shown(name: str) -> str:
    """A file name that fits into one line, whatever somebody called the file."""
    # The two joiners belong to letters: Persian writes words with one, and emoji hold together by the other.
    return "".join(c if c.isprintable() or c in "\u200c\u200d" else "?" for c in name[:255])


def fold_name(stem: str) -> str:
    """A file's name without its ending, as it is compared: a Mac may write é as two characters."""
    return unicodedata.normalize("NFC", stem).casefold()
