"""Every check and repair that pictures and captions must pass, and the crop that teacher and training see."""

import hashlib
import json
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import ExifTags, Image, ImageCms, ImageOps

from dopsd_app.events import KnownFailure

MIN_PICTURES, MAX_PICTURES = 4, 20
MAX_CAPTION = 2_000  # characters; text encoders read some 500 tokens and cut off the rest unseen
MAX_TEXT_BYTES = 1_000_000  # of a caption file, and of metadata.jsonl
HALVED_ABOVE = 50_000_000  # pixels
MAX_PIXELS = 89_000_000  # Pillow warns of a decompression bomb at 89.5 million
CAPTION_COLUMNS = ("text", "caption", "prompt")  # of metadata.jsonl; the first one that is there counts

# The ladder of diffusers.training_utils.generate_aspect_ratio_buckets; that module itself would import torch.
ASPECT_RATIOS = (1, 4 / 5, 5 / 4, 2 / 3, 3 / 2, 3 / 4, 4 / 3, 9 / 16, 16 / 9, 1 / 2, 2)  # width / height

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
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".heic", ".heif", ".gif", ".bmp", ".tif", ".tiff")
_IGNORED = ("prompts.txt", "thumbs.db", "desktop.ini")  # prompts.txt: the examples keep preview prompts there

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
class Example:
    image: Path
    captions: tuple[str, ...]  # one is drawn per step
    source_images: tuple[Path, ...] = ()  # editing: the pictures to start from


@dataclass(frozen=True)
class Problem:
    picture: str  # its file name, seen from the folder; "" when the set is meant or a file that is no picture
    message: str  # a sentence or two: which file, what is wrong, what to do


@dataclass(frozen=True)
class Note:
    picture: str  # as in Problem
    message: str  # what was repaired or left out


@dataclass(frozen=True)
class Dataset:
    examples: tuple[Example, ...]
    notes: tuple[Note, ...]


class PicturesError(KnownFailure):
    """All that must be put right before these pictures can be used; as text, one problem per line."""

    def __init__(self, problems: Iterable[Problem]):
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(problem.message for problem in self.problems)


def read_examples(folder: str | Path, *, minimum_side: int) -> Dataset:
    """Reads and checks the pictures and captions of a folder, or raises PicturesError with every problem.

    Captions: one per line in .txt files beside the pictures, or in metadata.jsonl as `datasets` writes it,
    which then counts alone. Pictures are in natural order: 2.png before 10.png. `minimum_side` is in pixels.
    """
    if not Path(folder).is_dir():
        raise PicturesError([Problem("", f"There is no folder {_shown(str(folder))}. Check where it is.")])
    folder = _real(Path(folder))
    findings = list(_find_examples(folder))
    found = sorted(
        (finding for finding in findings if isinstance(finding, Example)),
        key=lambda example: _natural(_name(example.image, folder)),
    )
    if not MIN_PICTURES <= len(found) <= MAX_PICTURES:
        change = "Remove some." if len(found) > MAX_PICTURES else "Add more."
        needed = f"{MIN_PICTURES} to {MAX_PICTURES} are needed, but the folder has {len(found)}"
        findings.append(Problem("", f"Pictures: {needed}. {change}"))
    examples = tuple(found[:MAX_PICTURES])  # of a folder with thousands only so many are opened and spoken of
    findings += _check_pictures(examples, folder, minimum_side)
    names = ["", *(_name(example.image, folder) for example in examples)]
    problems = [finding for finding in findings if isinstance(finding, Problem) and finding.picture in names]
    if problems:
        raise PicturesError(sorted(problems, key=lambda problem: names.index(problem.picture)))
    return Dataset(examples, tuple(finding for finding in findings if isinstance(finding, Note)))


def copy_examples(dataset: Dataset, destination: str | Path) -> None:
    """Writes the repaired pictures and their captions as 01.png, 01.txt, ... into a folder, which it creates.

    Only pixels are written: no place, camera or colour profile. `read_examples` reads the same from there.
    """
    destination = Path(destination)
    destination.mkdir(parents=True)
    for number, example in enumerate(dataset.examples, start=1):
        # Level 1 writes photographs six times faster than the default; the files are a sixth larger.
        load_picture(example.image).save(destination / f"{number:02}.png", compress_level=1)
        captions = "".join(f"{caption}\n" for caption in example.captions)
        (destination / f"{number:02}.txt").write_text(captions, encoding="utf-8", newline="\n")


def load_picture(path: str | Path) -> Image.Image:
    """Opens a picture as all of the app sees it: upright, 8-bit sRGB, on white; or raises PicturesError."""
    picture, _ = _decode(Path(path), _shown(Path(path).name))
    return picture


def bucket(width: int, height: int, resolution: int, multiple: int) -> tuple[int, int]:
    """The (height, width) in pixels to crop a picture to: of the sizes on the ladder, the nearest in shape.

    The area is about `resolution` squared, the shape within 1:2 and 2:1, each side a multiple of `multiple`.
    """

    def rounded(side: float) -> int:
        return max(1, round(side / multiple)) * multiple

    sizes = [(rounded(resolution / ratio**0.5), rounded(resolution * ratio**0.5)) for ratio in ASPECT_RATIOS]
    return min(sizes, key=lambda size: abs(math.log(size[1] / size[0]) - math.log(width / height)))


def crop(picture: Image.Image, height: int, width: int) -> Image.Image:
    """Scales a picture until it covers height x width pixels and cuts out the middle."""
    return ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)


def _find_examples(folder: Path) -> Iterator[Example | Problem | Note]:
    """An example for every picture, without captions where none can be used, and what there is to say."""
    pictures, texts, has_metadata = [], [], False
    for path in sorted(folder.iterdir()):
        name = _name(path, folder)
        if name.startswith(".") or name.casefold() in _IGNORED:
            continue
        if not _real(path).is_relative_to(folder):
            yield Problem(
                "", f"{name} is a link to a place outside the folder. Copy the file itself into it."
            )
        elif name == "metadata.jsonl":
            has_metadata = True
        elif path.is_dir():
            yield Note("", f"{name} is a folder: what is in it counts only if metadata.jsonl lists it.")
        elif path.suffix.lower() == ".txt":
            texts.append(path)
        elif path.is_file() and (path.suffix.lower() in _SUFFIXES or _kind(path)):
            pictures.append(path)
        else:
            yield Note("", f"{name} is not a picture and was left out.")
    if has_metadata:
        yield from _read_metadata(folder, pictures)
        if texts:
            yield Note("", "The captions are those in metadata.jsonl: the .txt files were left out.")
    else:
        yield from _read_caption_files(folder, pictures, texts)


def _read_caption_files(
    folder: Path, pictures: list[Path], texts: list[Path]
) -> Iterator[Example | Problem | Note]:
    exactly = {path.stem: path for path in texts}
    loosely = {_folded(path.stem): path for path in texts}
    owners: dict[Path, str] = {}  # caption file: the picture it describes
    for picture in pictures:
        name, captions = _name(picture, folder), ()
        path = exactly.get(picture.stem) or loosely.get(_folded(picture.stem))
        if path is None:
            caption_file = _shown(f"{picture.stem}.txt")
            yield Problem(name, f"{name} has no caption. Write what the picture shows ({caption_file}).")
        elif path in owners:
            sharing = f"{owners[path]} and {name} share the caption file {_name(path, folder)}"
            yield Problem(name, f"{sharing}. Give each picture a name of its own.")
        else:
            owners[path] = name
            try:
                captions = _clean(_read_text(path).splitlines(), name)
            except ValueError as error:
                yield Problem(name, str(error))
        yield Example(picture, captions)
    for path in texts:
        if path not in owners:
            yield Note("", f"{_name(path, folder)} belongs to no picture and was left out.")


def _read_metadata(folder: Path, pictures: list[Path]) -> Iterator[Example | Problem]:
    """Lines such as {"file_name": "1.png", "text": "a caption"}; a list of texts means several captions.

    A picture that no line lists is refused, as one without a .txt is: nobody put it there to be passed over.
    """
    try:
        rows, broken = _parse_metadata(folder / "metadata.jsonl")
    except ValueError as error:
        yield Problem("", str(error))
        yield from (Example(picture, ()) for picture in pictures)
        return
    if broken:
        numbers = ", ".join(map(str, broken[:MAX_PICTURES]))
        yield Problem(
            "", f"metadata.jsonl is not valid JSON in line {numbers}. Write one whole {{...}} per line."
        )
    listed = set()
    for number, row in rows.items():
        try:
            path, texts = _read_row(row, folder)
        except ValueError as error:
            yield Problem("", f"Line {number} of metadata.jsonl {error}")
            continue
        name, captions = _name(path, folder), ()
        if path in listed:
            yield Problem(name, f"{name} is listed twice in metadata.jsonl. Remove one of the lines.")
            continue
        listed.add(path)
        try:
            captions = _clean(texts, name)
        except ValueError as error:
            yield Problem(name, str(error))
        yield Example(path, captions)
    for picture in pictures:
        if _real(picture) not in listed:
            name = _name(picture, folder)
            yield Problem(
                name, f"{name} is not in metadata.jsonl. Add a line with its caption, or remove it."
            )
            yield Example(picture, ())


def _parse_metadata(path: Path) -> tuple[dict[int, object], list[int]]:
    """The rows by line number, and the numbers of the lines that are not JSON."""
    rows, broken = {}, []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):  # JSON may hold other line breaks
        if not line.strip():
            continue
        try:
            rows[number] = json.loads(line, parse_int=float)  # int would refuse 5,000 digits
        except (json.JSONDecodeError, RecursionError):
            broken.append(number)
    return rows, broken


def _read_row(row: object, folder: Path) -> tuple[Path, list]:
    """The picture and the texts of one line, or a ValueError that completes "Line 3 of metadata.jsonl"."""
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
        raise ValueError('names no picture. Give its file name as "file_name".')
    name = _shown(row["file_name"])
    try:
        path = _real(folder / row["file_name"])
        is_file = path.is_file()
    except (OSError, ValueError):  # too long, or with characters that no file name can have
        path, is_file = folder, False
    if not path.is_relative_to(folder):
        raise ValueError(f"names {name}, which is outside the folder. Copy the picture into the folder.")
    if not is_file:
        raise ValueError(f"names {name}, which is not there. Add the picture or remove the line.")
    texts = next((row[column] for column in CAPTION_COLUMNS if column in row), None)
    return path, texts if isinstance(texts, list) else [texts]


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{_shown(path.name)} cannot be opened. Check that you may read it.") from error
    if len(content) > MAX_TEXT_BYTES:
        raise ValueError(f"{_shown(path.name)} is larger than a megabyte. Keep only captions in it.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # as in UTF-16, which can be valid UTF-8
        raise ValueError(f"{_shown(path.name)} is not UTF-8 text. Save it as plain text in UTF-8.")
    return text


def _clean(texts: list, name: str) -> tuple[str, ...]:
    """One line per caption, without control characters and broken Unicode; empty lines are passed over."""
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"The caption of {name} is missing or is not text. Write what the picture shows.")
    plain = ("".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in text) for text in texts)
    captions = tuple(caption for caption in (" ".join(text.split()) for text in plain) if caption)
    if not captions:
        raise ValueError(f"The caption of {name} is empty. Write what the picture shows.")
    longest = max(map(len, captions))
    if longest > MAX_CAPTION:
        raise ValueError(
            f"The caption of {name} has {longest} characters. Shorten it to {MAX_CAPTION} at most."
        )
    return captions


def _check_pictures(examples: Iterable[Example], folder: Path, minimum_side: int) -> Iterator[Problem | Note]:
    first: dict[tuple, str] = {}  # size and hash of the pixels: the first picture that has them
    for example in examples:
        name = _name(example.image, folder)
        try:
            picture, remarks = _decode(example.image, name)
        except PicturesError as error:
            yield from error.problems
            continue
        width, height = picture.size
        if min(width, height) < minimum_side:
            size = f"{width} x {height} pixels, and each side needs {minimum_side} or more"
            yield Problem(name, f"{name} has {size}. Use a larger picture.")
        if max(width, height) > 2 * min(width, height):
            remarks.append("is more than twice as long as it is wide: only its middle is used.")
        key = (picture.size, hashlib.sha256(picture.tobytes()).digest())
        if first.setdefault(key, name) != name:
            yield Problem(name, f"{name} is the same picture as {first[key]}. Remove one of them.")
        for remark in remarks:
            yield Note(name, f"{name} {remark}")


def _decode(path: Path, name: str) -> tuple[Image.Image, list[str]]:
    """The repaired picture, and remarks on the repairs: the rest of a sentence that begins with the name."""

    def refusal(message: str) -> PicturesError:
        return PicturesError([Problem(name, f"{name} {message}")])

    kind = _kind(path)
    if not kind:
        raise refusal("cannot be read as a picture. Save it again as JPEG or PNG, or remove it.")
    if kind not in _READABLE:
        raise refusal(f"is a picture in the {kind} format. Save it as JPEG or PNG first.")
    try:
        with Image.open(path, formats=[kind]) as picture:
            # A phone's JPEG may hold a preview or a depth map too (MPO): it has frames, but does not move.
            if picture.format in ("PNG", "WEBP") and picture.is_animated:
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
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
    elif picture.mode in ("1", "P"):
        picture = picture.convert("RGB")
    if picture.width * picture.height > HALVED_ABOVE:
        picture = picture.reduce(2)
    if turn is not None:
        remarks.append("was turned upright, as its camera noted.")
        picture = picture.transpose(turn)
    if profile:
        picture = _to_srgb(picture, profile)
    if picture.mode == "RGBA":
        alpha = picture.getchannel("A")
        if alpha.getextrema()[0] < 255:
            remarks.append("has transparent parts: they became white.")
        flat = Image.new("RGB", picture.size, "white")
        flat.paste(picture, mask=alpha)
        picture = flat
    picture = picture.convert("RGB")
    picture.info = {}  # or Pillow would write a profile that no longer holds into the next file
    return picture, remarks


def _orientation(picture: Image.Image) -> int:
    # Not ImageOps.exif_transpose: it rewrites all EXIF data, and fails over any damaged entry.
    try:
        return picture.getexif().get(ExifTags.Base.Orientation, 1)
    except (OSError, SyntaxError, ValueError):
        return 1


def _to_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    mode = "RGBA" if picture.mode == "RGBA" else "RGB"
    try:
        return ImageCms.profileToProfile(
            picture, BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode=mode
        )
    except ImageCms.PyCMSError:  # a damaged profile, or one for other kinds of pictures: nobody heeds those
        return picture


def _kind(path: Path) -> str:
    """The format by the file's content; "" for what is no picture or cannot be opened."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError:
        return ""
    return next((kind for kind, signature in _SIGNATURES.items() if re.match(signature, head, re.DOTALL)), "")


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # unlike Path.resolve, it bears links that go in a circle


def _name(path: Path, folder: Path) -> str:
    return _shown(path.relative_to(folder).as_posix())


def _shown(name: str) -> str:
    """A file name that fits into one line, whatever somebody called the file."""
    return "".join(character if character.isprintable() else "?" for character in name[:255])


def _folded(stem: str) -> str:
    return unicodedata.normalize("NFC", stem).casefold()  # a Mac may write é as two characters


def _natural(name: str) -> tuple:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name.casefold())], name
