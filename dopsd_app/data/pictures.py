"""A set of pictures with captions: every check it must pass, and the crop that teacher and training see."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from dopsd_app.data.caption_file import clean_captions, parse_metadata, parse_row, read_text
from dopsd_app.data.crops import CROPS_FILE, MIDDLE, read_crops, write_crops
from dopsd_app.data.crops import crop as crop
from dopsd_app.data.crops import crop_box as crop_box
from dopsd_app.data.crops import lost_share as lost_share
from dopsd_app.data.picture_file import (
    PicturesError,
    Problem,
    decode,
    fold_name,
    load_picture,
    shown,
)
from dopsd_app.data.picture_formats import picture_format
from dopsd_app.data.source_pictures import (
    FOLDERS,
    Pairs,
    check_sources,
    find_place,
    orphan_message,
    pair,
)

MIN_PICTURES, MAX_PICTURES = 4, 200

PICTURE_SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".webp",
    ".avif",
    ".heic",
    ".heif",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
)
IGNORED = ("prompts.txt", "thumbs.db", "desktop.ini")  # prompts.txt: the examples keep preview prompts there


@dataclass(frozen=True)
class Example:
    image: Path
    captions: tuple[str, ...]  # one is drawn per step
    source_images: tuple[Path, ...] = ()  # editing: the pictures to start from
    focus: tuple[float, float] = MIDDLE  # where the crop lies, as in `crop`


@dataclass(frozen=True)
class Note:
    picture: str  # as in Problem
    message: str  # what was repaired or left out


@dataclass(frozen=True)
class Dataset:
    examples: tuple[Example, ...]
    notes: tuple[Note, ...]
    clean: bool = False  # whether the pictures are already as `copy_examples` writes them

    @property
    def sources(self) -> int:
        """The most pictures to start from that one picture has; 0 where nothing is edited."""
        return most_sources(self.examples)


def most_sources(examples: Iterable[Example]) -> int:
    """The most pictures to start from that one of these has."""
    return max((len(example.source_images) for example in examples), default=0)


def read_examples(folder: str | Path, *, minimum_side: int) -> Dataset:
    """Reads and checks the pictures and captions of a folder, or raises PicturesError with every problem.

    Captions: one per line in .txt files beside the pictures, or in metadata.jsonl as `datasets` writes it,
    which then counts alone. Pictures are in natural order: 2.png before 10.png. `minimum_side` is in pixels.
    For editing, `cat_source.png` (or `cat_source_1.png`, ...) is what `cat.png` is made from; or a folder
    `source` holds it under the same name, beside the pictures or beside their folder `target`; or a line of
    metadata.jsonl names it. In crops.json stands where crops lie that are not to be the middle.
    """
    if not Path(folder).is_dir():
        raise PicturesError([Problem("", f"There is no folder {shown(str(folder))}. Check where it is.")])
    folder = _real(Path(folder))
    findings = list(_find_examples(folder))
    found = sorted(
        (finding for finding in findings if isinstance(finding, Example)),
        key=lambda example: natural_order(_name(example.image, folder)),
    )
    found = _with_crops(found, folder, findings)
    findings += check_count(len(found), "the folder")
    examples = tuple(found[:MAX_PICTURES])  # of a folder with thousands only so many are opened and spoken of
    findings += _inspect(examples, folder, minimum_side)
    findings += check_sources(
        [(_name(example.image, folder), len(example.source_images)) for example in examples]
    )
    names = ["", *(_name(example.image, folder) for example in examples)]
    problems = [finding for finding in findings if isinstance(finding, Problem) and finding.picture in names]
    if problems:
        raise PicturesError(sorted(problems, key=lambda problem: names.index(problem.picture)))
    return Dataset(examples, tuple(finding for finding in findings if isinstance(finding, Note)))


def check_count(count: int, holder: str) -> list[Problem]:
    """The problem with having so many pictures, if there is one; `holder` is who has them."""
    if MIN_PICTURES <= count <= MAX_PICTURES:
        return []
    change = "Remove some." if count > MAX_PICTURES else "Add more."
    needed = f"{MIN_PICTURES} to {MAX_PICTURES} are needed, but {holder} has {count}"
    return [Problem("", f"Pictures: {needed}. {change}")]


@dataclass(frozen=True)
class PictureFacts:
    """What the checks of a set need to know of a picture once it was opened."""

    name: str  # as in Problem
    size: tuple[int, int]  # pixels: width, height
    pixels: str  # their hash


def hash_pixels(picture: Image.Image) -> str:
    """Equal for equal pixels, whatever file they came from."""
    return hashlib.sha256(picture.tobytes()).hexdigest()


def remarks_on(size: tuple[int, int]) -> list[str]:
    """What becomes of a picture of this size: the rest of a sentence that begins with its name."""
    if max(size) > 2 * min(size):
        return ["is more than twice as long as it is wide: only its middle is used."]
    return []


def check_set(pictures: Iterable[PictureFacts], minimum_side: int) -> Iterator[Problem | Note]:
    """Refuses small pictures and the second of two equal ones, and notes very long ones."""
    first: dict[tuple, str] = {}  # size and pixels: the first picture that has them
    for picture in pictures:
        name, (width, height) = picture.name, picture.size
        if min(width, height) < minimum_side:
            size = f"{width} x {height} pixels, and each side needs {minimum_side} or more"
            yield Problem(name, f"{name} has {size}. Use a larger picture.")
        yield from (Note(name, f"{name} {remark}") for remark in remarks_on(picture.size))
        same = first.setdefault((picture.size, picture.pixels), name)
        if same != name:
            yield Problem(name, f"{name} is the same picture as {same}. Remove one of them.")


def copy_examples(dataset: Dataset, destination: str | Path) -> None:
    """Writes the repaired pictures and their captions as 01.png, 01.txt, ... into a folder, which it creates.

    Only pixels are written: no place, camera or colour profile. `read_examples` reads the same from there.
    Pictures to start from become sources/01-1.png, ... Where crops were moved, they stand in crops.json.
    """
    destination = Path(destination)
    destination.mkdir(parents=True)
    for number, example in enumerate(dataset.examples, start=1):
        if dataset.clean:
            shutil.copyfile(example.image, destination / f"{number:02}.png")
        else:
            # Level 1 writes photographs six times faster than the default; the files are a sixth larger.
            load_picture(example.image).save(destination / f"{number:02}.png", compress_level=1)
        for place, source in enumerate(example.source_images, start=1):
            file = destination / FOLDERS[1] / f"{number:02}-{place}.png"
            file.parent.mkdir(exist_ok=True)
            load_picture(source).save(file, compress_level=1)
        captions = "".join(f"{caption}\n" for caption in example.captions)
        (destination / f"{number:02}.txt").write_text(captions, encoding="utf-8", newline="\n")
    focuses = {f"{number:02}.png": example.focus for number, example in enumerate(dataset.examples, start=1)}
    write_crops(destination, focuses)


def _find_examples(folder: Path) -> Iterator[Example | Problem | Note]:
    """An example for every picture, without captions where none can be used, and what there is to say."""
    place = find_place(folder)
    pictures, texts, has_metadata = [], [], False
    for path in sorted({*folder.iterdir(), *place.iterdir()}):
        name = _name(path, folder)
        if _is_ignored(path) or path == place:
            continue
        if not _real(path).is_relative_to(folder):
            yield Problem(
                "", f"{name} is a link to a place outside the folder. Copy the file itself into it."
            )
        elif name == "metadata.jsonl":
            has_metadata = True
        elif path.is_dir():
            if name not in FOLDERS:
                yield Note("", f"{name} is a folder: what is in it counts only if metadata.jsonl lists it.")
        elif path.parent != place:
            yield Note("", f"{name} is not in the folder {place.name}, and was left out.")
        elif name == CROPS_FILE:
            continue
        elif path.suffix.lower() == ".txt":
            texts.append(path)
        elif path.is_file() and (path.suffix.lower() in PICTURE_SUFFIXES or picture_format(path)):
            pictures.append(path)
        else:
            yield Note("", f"{name} is not a picture and was left out.")
    pairs = pair(pictures, {fold_name(path.stem) for path in texts}, _files_of_sources(folder))
    if has_metadata:
        yield from _read_metadata(folder, pairs)
        if texts:
            yield Note("", "The captions are those in metadata.jsonl: the .txt files were left out.")
    else:
        yield from _read_caption_files(folder, pairs, texts)
        yield from (Problem("", orphan_message(_name(path, folder))) for path in pairs.orphans)


def _with_crops(
    examples: list[Example], folder: Path, findings: list[Example | Problem | Note]
) -> list[Example]:
    """The examples with the crops that were moved; what is wrong with these goes to the findings."""
    try:
        focuses = read_crops(folder)
    except ValueError as error:
        findings.append(Problem("", str(error)))
        return examples
    keys = {example: example.image.relative_to(folder).as_posix() for example in examples}
    for name in focuses.keys() - set(keys.values()):
        findings.append(Note("", f"{CROPS_FILE} names {shown(name)}, which is not there."))
    return [replace(example, focus=focuses.get(keys[example], MIDDLE)) for example in examples]


def _files_of_sources(folder: Path) -> list[Path]:
    """What lies in the folder of sources, in natural order."""
    found = [path for name in FOLDERS if (folder / name).is_dir() for path in (folder / name).iterdir()]
    return sorted(
        (path for path in found if path.is_file() and not _is_ignored(path)),
        key=lambda path: natural_order(path.name),
    )


def _is_ignored(path: Path) -> bool:
    return path.name.startswith(".") or path.name.casefold() in IGNORED


def _read_caption_files(folder: Path, pairs: Pairs, texts: list[Path]) -> Iterator[Example | Problem | Note]:
    exactly = {path.stem: path for path in texts}
    loosely = {fold_name(path.stem): path for path in texts}
    owners: dict[Path, str] = {}  # caption file: the picture it describes
    for picture in pairs.targets:
        name, captions = _name(picture, folder), ()
        path = exactly.get(picture.stem) or loosely.get(fold_name(picture.stem))
        if path is None:
            caption_file = shown(f"{picture.stem}.txt")
            yield Problem(name, f"{name} has no caption. Write what the picture shows ({caption_file}).")
        elif path in owners:
            sharing = f"{owners[path]} and {name} share the caption file {_name(path, folder)}"
            yield Problem(name, f"{sharing}. Give each picture a name of its own.")
        else:
            owners[path] = name
            try:
                captions = clean_captions(read_text(path).splitlines(), name)
            except ValueError as error:
                yield Problem(name, str(error))
        yield Example(picture, captions, pairs.sources.get(picture, ()))
    for path in texts:
        if path not in owners:
            yield Note("", f"{_name(path, folder)} belongs to no picture and was left out.")


def _read_metadata(folder: Path, pairs: Pairs) -> Iterator[Example | Problem]:
    """Lines such as {"file_name": "1.png", "text": "a caption"}; a list of texts means several captions.

    A picture that no line lists is refused, as one without a .txt is: nobody put it there to be passed over.
    """
    try:
        rows, broken = parse_metadata(folder / "metadata.jsonl")
    except ValueError as error:
        yield Problem("", str(error))
        yield from (Example(picture, ()) for picture in pairs.targets)
        return
    if broken:
        numbers = ", ".join(map(str, broken[:MAX_PICTURES]))
        yield Problem(
            "", f"metadata.jsonl is not valid JSON in line {numbers}. Write one whole {{...}} per line."
        )
    by_name = {_real(target): sources for target, sources in pairs.sources.items()}
    listed, sources_listed = set(), set()
    for number, row in rows.items():
        try:
            parsed = parse_row(row)
            path = _find_picture(parsed.file_name, folder)
            sources = tuple(_find_picture(source, folder) for source in parsed.sources)
        except ValueError as error:
            yield Problem("", f"Line {number} of metadata.jsonl {error}")
            continue
        name, captions = _name(path, folder), ()
        sources_listed |= set(sources)
        if path in listed:
            yield Problem(name, f"{name} is listed twice in metadata.jsonl. Remove one of the lines.")
            continue
        listed.add(path)
        try:
            captions = clean_captions(parsed.texts, name)
        except ValueError as error:
            yield Problem(name, str(error))
        yield Example(path, captions, sources or by_name.get(path, ()))
    for orphan in pairs.orphans:
        if _real(orphan) not in listed | sources_listed:
            yield Problem("", orphan_message(_name(orphan, folder)))
    for picture in pairs.targets:
        if _real(picture) not in listed | sources_listed:
            name = _name(picture, folder)
            yield Problem(
                name, f"{name} is not in metadata.jsonl. Add a line with its caption, or remove it."
            )
            yield Example(picture, ())


def _find_picture(file_name: str, folder: Path) -> Path:
    """The picture that a line means, or a ValueError that completes "Line 3 of metadata.jsonl"."""
    name = shown(file_name)
    try:
        path = _real(folder / file_name)
        is_file = path.is_file()
    except (OSError, ValueError):  # too long, or with characters that no file name can have
        path, is_file = folder, False
    if not path.is_relative_to(folder):
        raise ValueError(f"names {name}, which is outside the folder. Copy the picture into the folder.")
    if not is_file:
        raise ValueError(f"names {name}, which is not there. Add the picture or remove the line.")
    return path


def _inspect(examples: Iterable[Example], folder: Path, minimum_side: int) -> Iterator[Problem | Note]:
    """Opens the pictures one by one: what is wrong with each, with the set, and what was repaired."""
    facts = []
    for example in examples:
        name = _name(example.image, folder)
        try:
            picture, remarks = decode(example.image, name)
        except PicturesError as error:
            yield from error.problems
            continue
        facts.append(PictureFacts(name, picture.size, hash_pixels(picture)))
        for remark in remarks:
            yield Note(name, f"{name} {remark}")
        yield from _inspect_sources(example, folder)
    yield from check_set(facts, minimum_side)


def _inspect_sources(example: Example, folder: Path) -> Iterator[Problem | Note]:
    """What there is to say of the pictures that an example is made from, reported of the example."""
    name = _name(example.image, folder)
    for path in example.source_images:
        shown_name = _name(path, folder)
        if not _real(path).is_relative_to(folder):
            message = f"{shown_name} is a link to a place outside the folder. Copy the file itself into it."
            yield Problem(name, message)
            continue
        try:
            picture, remarks = decode(path, shown_name)
        except PicturesError as error:
            yield from (Problem(name, problem.message) for problem in error.problems)
            continue
        yield from (Note(name, f"{shown_name} {remark}") for remark in [*remarks, *remarks_on(picture.size)])


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # unlike Path.resolve, it bears links that go in a circle


def _name(path: Path, folder: Path) -> str:
    return shown(path.relative_to(folder).as_posix())


def natural_order(name: str) -> tuple:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name.casefold())], name
