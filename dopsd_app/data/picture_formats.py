"""Which format a picture file has, by its content, and how a file of each is opened and decoded."""

import functools
import re
import struct
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import IO

from PIL import Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

HALVED_ABOVE = 50_000_000  # pixels
MAX_PIXELS = 89_000_000  # Pillow warns of a decompression bomb at 89.5 million
MAX_JPEG_PIXELS = 250_000_000  # phones take 200 million; a JPEG is made smaller while it is decoded

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
# What may hold several pictures in a row. A phone's JPEG may hold a preview or a depth map too (MPO), and its
# HEIC small copies: nobody thinks of those as pictures.
_MOVING = (PngImageFile, WebPImageFile, GifImageFile, AvifImageFile, TiffImageFile)
_TEXT = (b"tEXt", b"zTXt", b"iTXt")  # chunks of a PNG
_REDUCED, _DNG = 254, 50706  # tags of a TIFF: what kind of picture it is, and that it is a camera's raw file
# What the readers of Pillow raise for damaged files, besides OSError; DecompressionBombError is none of them.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, IndexError, KeyError, struct.error)
# Nothing of a picture hangs on its file's last bytes where these three ends make the same of it: pixels that
# were cut off would be read out of their first bytes.
_ENDS = (b"\xff\xd9", b"\x55" * 64 + b"\xff\xd9", b"\xcc" * 64 + b"\xff\xd9")


class Unreadable(ValueError):
    """A picture that is whole and yet of no use; completes a sentence that begins with its name."""


def picture_format(path: Path) -> str:
    """The format by the file's content; "" for what is no picture or cannot be opened."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError:
        return ""
    return next((kind for kind, signature in _SIGNATURES.items() if re.match(signature, head, re.DOTALL)), "")


def load(path: Path, kind: str) -> tuple[Image.Image, list[str]]:
    """The first picture of a file, decoded, and remarks on what was left out.

    Raises one of `DAMAGED`, `DecompressionBombError` for too many pixels, and `Unreadable`.
    """
    if kind == "JPEG":
        return _load_jpeg(path)
    if kind == "PNG":
        return _load_png(path)
    return _load(path, kind)


def _load(source: Path | IO[bytes], kind: str) -> tuple[Image.Image, list[str]]:
    remarks = []
    if kind == "HEIC":
        _register_heif()
    with Image.open(source, formats=["HEIF" if kind == "HEIC" else kind]) as picture:
        _check_pixels(picture, MAX_PIXELS)
        if isinstance(picture, TiffImageFile):
            _check_tiff(picture)
        if isinstance(picture, _MOVING) and picture.is_animated:
            remarks.append("holds several pictures: only the first was taken.")
        if picture.width * picture.height > HALVED_ABOVE:
            remarks.append(f"has {picture.width} x {picture.height} pixels: both sides were halved.")
        picture.load()
    return picture, remarks


@functools.cache
def _register_heif() -> None:
    import pi_heif  # the only one of all formats that Pillow does not read; decodes only

    pi_heif.register_heif_opener()


def _check_pixels(picture: Image.Image, most: int) -> None:
    if picture.width * picture.height > most:
        raise Unreadable(f"has more than {most // 10**6} million pixels. Scale it down first.")


def _check_tiff(picture: TiffImageFile) -> None:
    """Refuses a camera's raw file, of which only the small preview would be read, and measured values."""
    tags = picture.tag_v2
    if _DNG in tags or tags.get(_REDUCED, 0) & 1:
        raise Unreadable("is a camera's raw file. Save it as JPEG or PNG first.")
    if picture.mode in ("F", "I"):
        raise Unreadable("has 32 bits for each colour. Save it with 8 or 16, as JPEG or PNG.")


# --- JPEG


def _load_jpeg(path: Path) -> tuple[Image.Image, list[str]]:
    try:
        with path.open("rb") as file:
            return _decode_jpeg(file)
    except OSError as error:
        if "truncated" not in str(error):
            raise
        return _without_end(path, error), ["lacks its end: all of the picture is there."]


def _decode_jpeg(file: IO[bytes]) -> tuple[Image.Image, list[str]]:
    # Not Image.open: it refuses by the size before anything was made smaller.
    picture = JpegImageFile(file)
    width, height = picture.size
    # A progressive one is held whole while it is decoded, in 2 bytes for each colour.
    _check_pixels(picture, MAX_PIXELS if picture.info.get("progressive") else MAX_JPEG_PIXELS)
    remarks, scale = [], 1
    while width * height > HALVED_ABOVE * scale**2:
        scale *= 2
    if scale > 1:
        how = "halved" if scale == 2 else f"divided by {scale}"
        remarks.append(f"has {width} x {height} pixels: both sides were {how}.")
        picture.draft(None, (width // scale, height // scale))
    picture.load()
    return picture, remarks


def _without_end(path: Path, error: OSError) -> Image.Image:
    """A JPEG whose last bytes are missing, where none of its pixels hangs on them; else raises `error`.

    Grey or smeared rows would be learned as part of the subject.
    """
    content = path.read_bytes().removesuffix(b"\xff")  # the first half of the end
    first, *others = (_decode_jpeg(BytesIO(content + end))[0] for end in _ENDS)
    if any(other.tobytes() != first.tobytes() for other in others):
        raise error
    return first


# --- PNG


def _load_png(path: Path) -> tuple[Image.Image, list[str]]:
    with path.open("rb") as file:
        # Pillow would ask for so much memory at once.
        if any(length > left for kind, _, length, left in _chunks(file) if kind == b"IDAT"):
            raise SyntaxError("A chunk reaches beyond the file.")
    try:
        return _load(path, "PNG")
    except Unreadable:
        raise
    except ValueError:  # more text than Pillow takes, such as the workflow of a program that draws
        return _load(_without_text(path), "PNG")


def _without_text(path: Path) -> BytesIO:
    kept = BytesIO()
    with path.open("rb") as file:
        kept.write(file.read(8))
        for kind, start, length, _ in list(_chunks(file)):
            if kind not in _TEXT:
                file.seek(start)
                kept.write(file.read(length + 12))
    kept.seek(0)
    return kept


def _chunks(file: IO[bytes]) -> Iterator[tuple[bytes, int, int, int]]:
    """Of each chunk of a PNG: kind, where it starts, the length that it claims, and the bytes that follow."""
    end = file.seek(0, 2)
    start = 8
    while start + 8 <= end:
        file.seek(start)
        length, kind = struct.unpack(">I4s", file.read(8))
        yield kind, start, length, end - start - 8
        start += length + 12
