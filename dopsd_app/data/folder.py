"""The pictures and captions of a folder, as people and other programs lay them out; no picture is decoded."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from dopsd_app.data.caption_file import (
    CAPTION_SUFFIXES,
    PICTURE_SUFFIXES,
    TABLES,
    caption_stem,
    clean_captions,
    parse_row,
    parse_table,
    read_caption_file,
)
from dopsd_app.data.crops import CROPS_FILE, MIDDLE, read_crops
from dopsd_app.data.example import Example, Note, natural_order
from dopsd_app.data.picture_file import Problem, fold_name, shown
from dopsd_app.data.picture_formats import picture_format
from dopsd_app.data.source_pictures import FOLDERS, TARGETS, Pairs, find_place, orphan_message, pair

IGNORED = (
    "prompts.txt",
    "thumbs.db",
    "desktop.ini",
    "__macosx",
)  # the examples keep preview prompts in the first
BACKUPS = (".bak", ".old", ".orig", ".tmp", ".part", ".crdownload", ".download")
DOCUMENTS = ("readme", "license", "licence", "copying", "notice", "changelog")
LISTED = 10  # names or numbers in one message
DEPTH = 3  # folders in folders: a zip of one that holds kohya's or `datasets`'
_REPEATED = re.compile(r"\d+_\s*(\S.*)")  # how kohya's scripts say how often a folder's pictures are seen
_OTHER_SPLITS = {"test", "validation", "valid", "val", "dev", "eval"}  # of `datasets`, beside "train"
Finding = Example | Problem | Note


@dataclass(frozen=True)
class Scan:
    """What a folder holds."""

    folder: Path  # that the names of files are seen from
    examples: tuple[Example, ...]  # in natural order, without captions where none can be used
    said: tuple[Problem | Note, ...]
    trigger_word: str = ""  # that the name of a folder offers


def is_picture(path: Path) -> bool:
    """Whether a file is meant as a picture, by its ending or else by its content; a backup of one is not."""
    if is_backup(path.name) or not path.is_file():
        return False
    return path.suffix.lower() in PICTURE_SUFFIXES or bool(picture_format(path))


def is_backup(name: str) -> bool:
    """Whether a file's name says that it is an earlier state of another, or a download under way."""
    return name.endswith("~") or Path(name).suffix.lower() in BACKUPS


def is_document(name: str) -> bool:
    """Whether a file's name says that it is about the pictures: a README, a licence."""
    return Path(name).stem.casefold() in DOCUMENTS


def is_ignored(name: str) -> bool:
    """Whether nothing needs to be said of a file or folder of this name."""
    return name.startswith(".") or name.casefold() in IGNORED


def scan_folder(folder: Path) -> Scan:
    """The pictures and captions of a folder that somebody named; links are followed, wherever they lead.

    Where there are no pictures in it, those of a folder below are taken: of the only one, of `train`, or of
    all that are called as kohya's scripts want it.
    """
    folder = Path(os.path.realpath(folder))  # unlike Path.resolve, it bears links that go in a circle
    places, said = _find_places(folder)
    root = places[0] if len(places) == 1 else folder
    findings = [*said, *(finding for place in places for finding in _find_examples(place, root))]
    found = [finding for finding in findings if isinstance(finding, Example)]
    examples, about_crops = _with_crops(found, root)
    said = [finding for finding in findings if not isinstance(finding, Example)] + about_crops
    named = [match[1].split()[0] for place in places if (match := _REPEATED.fullmatch(place.name))]
    if named:
        number = "The number before a folder's name was ignored: the steps say how often a picture is seen."
        said.append(Note("", number))
    examples.sort(key=lambda example: natural_order(name_in(example.image, root)))
    return Scan(root, tuple(examples), tuple(said), named[0] if named else "")


def name_in(path: Path, folder: Path) -> str:
    """A file's name as people are told it: seen from the folder."""
    return shown(path.relative_to(folder).as_posix())


# --- where the pictures are


def _find_places(folder: Path) -> tuple[list[Path], list[Problem | Note]]:
    """The folders to read, which are more than one only of kohya's, and what is said of the choice."""
    place = folder
    for _ in range(DEPTH):
        if _holds_pictures(place):
            break
        below = [path for path in _folders(place) if _reaches_pictures(path, DEPTH)]
        names = {path.name for path in below}
        if len(below) > 1 and all(_REPEATED.fullmatch(name) for name in names):
            return below, []
        if "train" in names and names - {"train"} <= _OTHER_SPLITS:
            below = [path for path in below if path.name == "train"]
        if len(below) > 1:
            named = ", ".join(shown(path.name) for path in below[:LISTED])
            message = f"There are no pictures in the folder itself, but in several below: {named}."
            return [folder], [Problem("", f"{message} Give one of them.")]
        if not below:
            return [folder], []
        place = below[0]
    if place == folder:
        return [folder], []
    where = shown(place.relative_to(folder).as_posix())
    return [place], [Note("", f"The pictures are those in {where}: there are none in the folder itself.")]


def _holds_pictures(folder: Path) -> bool:
    if (folder / TARGETS).is_dir() or any((folder / name).is_file() for name in TABLES):
        return True
    return any(is_picture(path) for path in _entries(folder) if not is_ignored(path.name))


def _reaches_pictures(folder: Path, depth: int) -> bool:
    if _holds_pictures(folder):
        return True
    return depth > 1 and any(_reaches_pictures(path, depth - 1) for path in _folders(folder))


def _folders(folder: Path) -> list[Path]:
    """The folders below that may hold pictures to learn from."""
    return [
        path
        for path in _entries(folder)
        if path.is_dir() and not is_ignored(path.name) and path.name not in FOLDERS
    ]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # one that may not be opened
        return []


# --- what is in one folder


def _find_examples(folder: Path, root: Path) -> Iterator[Finding]:
    """An example for every picture, without captions where none can be used, and what there is to say."""
    place = find_place(folder)
    table = next((name for name in TABLES if (folder / name).is_file()), "")
    pictures, texts = [], []
    for path in sorted({*_entries(folder), *_entries(place)}):
        name = name_in(path, root)
        if is_ignored(path.name) or path == place or path.name in (CROPS_FILE, table):
            continue
        if path.is_dir():
            if path.name not in FOLDERS:
                yield Note("", f"{name} is a folder: what is in it counts only if metadata.jsonl lists it.")
        elif path.parent != place:
            yield Note("", f"{name} is not in the folder {place.name}, and was left out.")
        elif is_backup(path.name):
            yield Note("", f"{name} is a backup and was left out.")
        elif path.suffix.lower() in CAPTION_SUFFIXES and path.is_file():
            texts.append(path)
        elif is_picture(path):
            pictures.append(path)
        else:
            yield Note("", f"{name} is not a picture and was left out.")
    captioned = {fold_name(caption_stem(path.name)) for path in texts}
    pairs = pair(pictures, captioned, _files_of_sources(folder))
    if table:
        yield from _read_table(folder / table, root, pairs)
        if texts:
            endings = " and ".join(sorted({path.suffix.lower() for path in texts}))
            yield Note("", f"The captions are those in {table}: the {endings} files were left out.")
    else:
        yield from _read_caption_files(root, pairs, texts)
        yield from (Problem("", orphan_message(name_in(path, root))) for path in pairs.orphans)


def _files_of_sources(folder: Path) -> list[Path]:
    """What lies in the folder of sources, in natural order."""
    found = [path for name in FOLDERS if (folder / name).is_dir() for path in _entries(folder / name)]
    return sorted(
        (path for path in found if path.is_file() and not is_ignored(path.name)),
        key=lambda path: natural_order(path.name),
    )


def _read_caption_files(root: Path, pairs: Pairs, texts: list[Path]) -> Iterator[Finding]:
    there = {fold_name(picture.name) for picture in pairs.targets}
    texts = sorted(texts, key=lambda path: CAPTION_SUFFIXES.index(path.suffix.lower()))
    whole, exactly, loosely = {}, {}, {}  # by the picture's file name, by its stem, and by that as compared
    for path in texts:
        stem = caption_stem(path.name)
        if stem != path.stem:
            whole.setdefault(fold_name(f"{path.stem}."), path)
            if fold_name(path.stem) in there:
                continue
        exactly.setdefault(stem, path)
        loosely.setdefault(fold_name(stem), path)
    owners: dict[Path, str] = {}  # caption file: the picture it describes
    for picture in pairs.targets:
        name, captions, own = name_in(picture, root), (), None
        path = whole.get(fold_name(f"{picture.name}.")) or exactly.get(picture.stem)
        path = path or loosely.get(fold_name(picture.stem))
        if path is None:
            caption_file = shown(f"{picture.stem}.txt")
            message = f"{name} has no caption. Write what the picture shows ({caption_file})."
            yield Problem(name, message, caption=True)
        elif path in owners:
            sharing = f"{owners[path]} and {name} share the caption file {name_in(path, root)}"
            yield Problem(name, f"{sharing}. Give each picture a name of its own.")
        else:
            owners[path], own = name, path
            try:
                if (read := read_caption_file(path)) is None:
                    raise ValueError(
                        f"{name_in(path, root)} holds no caption: none under “caption” or “text”."
                    )
                texts_of, text = read
                if text.remark:
                    yield Note(name, f"{name_in(path, root)} {text.remark}")
            except ValueError as error:
                yield Problem(name, str(error))
            else:
                captions, problem = _cleaned(texts_of, name)
                yield from problem
        yield Example(picture, captions, pairs.sources.get(picture, ()), caption_file=own)
    for path in texts:
        if path not in owners:
            document = is_document(path.name)
            reason = "is about the pictures" if document else "belongs to no picture"
            message = f"{name_in(path, root)} {reason} and was left out."
            yield Note("", message, caption_file=None if document else path)


def _cleaned(texts: list, name: str) -> tuple[tuple[str, ...], list[Problem]]:
    """The captions of a picture, and what is wrong with them."""
    try:
        return clean_captions(texts, name), []
    except ValueError as error:
        lines = [" ".join(text.split()) for text in texts if isinstance(text, str)]
        return (), [Problem(name, str(error), typed="\n".join(lines).strip(), caption=True)]


def _read_table(table: Path, root: Path, pairs: Pairs) -> Iterator[Finding]:
    """Lines such as {"file_name": "1.png", "text": "a caption"}; a list of texts means several captions.

    A picture that no line lists is refused, as one without a .txt is: nobody put it there to be passed over.
    """
    folder = table.parent
    try:
        rows, broken = parse_table(table)
    except ValueError as error:
        yield Problem("", str(error))
        yield from (Example(picture, ()) for picture in pairs.targets)
        return
    if broken:
        numbers = ", ".join(map(str, broken[:LISTED]))
        how = "Write one whole {...} per line." if table.suffix == ".jsonl" else "Write a list of {...}."
        yield Problem("", f"{table.name} is not valid JSON in line {numbers}. {how}")
    listed, sources_listed = set(), set()
    for number, row in rows.items():
        try:
            parsed = parse_row(row)
            path = _find_picture(parsed.file_name, folder)
            sources = tuple(_find_picture(source, folder) for source in parsed.sources)
        except ValueError as error:
            yield Problem("", f"Line {number} of {table.name} {error}")
            continue
        name = name_in(path, root)
        sources_listed |= set(sources)
        if path in listed:
            yield Problem(name, f"{name} is listed twice in {table.name}. Remove one of the lines.")
            continue
        listed.add(path)
        captions, problem = _cleaned(parsed.texts, name)
        yield from problem
        yield Example(path, captions, sources or pairs.sources.get(path, ()))
    for orphan in pairs.orphans:
        if orphan not in listed | sources_listed:
            yield Problem("", orphan_message(name_in(orphan, root)))
    for picture in pairs.targets:
        if picture not in listed | sources_listed:
            name = name_in(picture, root)
            message = f"{name} is not in {table.name}. Add a line with its caption, or remove it."
            yield Problem(name, message, caption=True)
            yield Example(picture, ())


def _find_picture(file_name: str, folder: Path) -> Path:
    """The picture that a line means, or a ValueError that completes "Line 3 of metadata.jsonl".

    `.\\1.png` is 1.png, as Windows writes it, and 1.PNG too, where that is not there.
    """
    name = shown(file_name)
    path = Path(os.path.normpath(folder / file_name))
    if "\\" in file_name and not _is_file(path):
        path = Path(os.path.normpath(folder / file_name.replace("\\", "/")))
    if not path.is_relative_to(folder):
        raise ValueError(f"names {name}, which is outside the folder. Copy the picture into the folder.")
    if not _is_file(path):
        wanted = fold_name(path.name)
        path = next((other for other in _entries(path.parent) if fold_name(other.name) == wanted), path)
    if not _is_file(path):
        raise ValueError(f"names {name}, which is not there. Add the picture or remove the line.")
    return path


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or with characters that no file name can have
        return False


def _with_crops(examples: list[Example], root: Path) -> tuple[list[Example], list[Problem | Note]]:
    """The examples with the crops that were moved, and what is wrong with these."""
    try:
        focuses = read_crops(root)
    except ValueError as error:
        return examples, [Problem("", str(error))]
    names = [example.image.relative_to(root).as_posix() for example in examples]
    gone = focuses.keys() - set(names)
    said: list[Problem | Note] = [
        Note("", f"{CROPS_FILE} names {shown(name)}, which is not there.") for name in sorted(gone)
    ]
    pairs = zip(examples, names, strict=True)
    return [replace(example, focus=focuses.get(name, MIDDLE)) for example, name in pairs], said
