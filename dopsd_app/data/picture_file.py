"""One picture file: what it is, the repairs that it gets, and why it may be refused."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import cast

from PIL import ExifTags, Image, ImageCms
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from dopsd_app.errors import KnownFailure

HALVED_ABOVE = 50_000_000  # pixels
STRIP = 256  # rows that are halved at once: an even number
MAX_PIXELS = 89_000_000  # Pillow warns of a decompression bomb at 89.5 million

# What a file is, by its first bytes. Where AVIF and HEIC both say "mif1", only AVIF says more: it goes first.
_SIGNATURES = {
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "JPEG": rb"\xff\xd8\xff",
    "WEBP": rb"RIFF.{4}WEBP",
    "AVIF": rb".{4}ftyp.*avi[fs]",
    "HEIC": rb".{4}ftyp.*(hei[cmsx]|hev[cmsx]|mif1|msf1)",
    "GIF": rb"GIF8",
    "BMP": rb"BM.{4}\0{4}",
    "TIFF": rb"II\*\0|MM\0\*",  # most camera raw files too
}
_READABLE = ("PNG", "JPEG", "WEBP")

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
    if kind not in _READABLE:
        raise refusal(f"is a picture in the {kind} format. Save it as JPEG or PNG first.")
    try:
        with Image.open(path, formats=[kind]) as picture:
            # A phone's JPEG may hold a preview or a depth map too (MPO): it has frames, but does not move.
            if isinstance(picture, PngImageFile | WebPImageFile) and picture.is_animated:
                raise refusal("is an animation. Save one of its pictures as JPEG or PNG first.")
            if picture.width * picture.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            return _repair(picture)
    except PicturesError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise refusal(f"has more than {MAX_PIXELS // 10**6} million pixels. Scale it down first.") from error
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for damaged files
        raise refusal("is damaged or incomplete. Download or save it again.") from error


def _repair(picture: Image.Image) -> tuple[Image.Image, list[str]]:
    remarks = []
    width, height = picture.size
    if width * height > HALVED_ABOVE:
        remarks.append(f"has {width} x {height} pixels: both sides were halved.")
        picture.draft(None, (width // 2, height // 2))  # a JPEG is halved while it is decoded
    picture.load()
    profile, turn = picture.info.get("icc_profile"), _TURNS.get(_orientation(picture))
    if picture.mode == "I;16":
        remarks.append("has 16 bits per pixel: they became 8.")
        picture = picture.point(lambda value: value / 256).convert("L")  # convert alone cuts off at 255
    if picture.mode == "CMYK":
        remarks.append("has colours for print (CMYK): on a screen they may look a little different.")
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
    if profile:
        picture = _to_srgb(picture, profile)
    if picture.mode == "RGBA":
        alpha = picture.getchannel("A")
        # Of one band, it is a pair of numbers.
        if cast(float, alpha.getextrema()[0]) < 255:
            remarks.append("has transparent parts: they became white.")
        flat = Image.new("RGB", picture.size, "white")
        flat.paste(picture, mask=alpha)
        picture = flat
    else:
        picture = picture.convert("RGB")
    picture.info = {}  # or Pillow would write a profile that no longer holds into the next file
    return picture, remarks


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


def picture_format(path: Path) -> str:
    """The format by the file's content; "" for what is no picture or cannot be opened."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError:
        return ""
    return next((kind for kind, signature in _SIGNATURES.items() if re.match(signature, head, re.DOTALL)), "")


def shown(name: str) -> str:
    """A file name that fits into one line, whatever somebody called the file."""
    return "".join(character if character.isprintable() else "?" for character in name[:255])


def fold_name(stem: str) -> str:
    """A file's name without its ending, as it is compared: a Mac may write é as two characters."""
    return unicodedata.normalize("NFC", stem).casefold()
