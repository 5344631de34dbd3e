"""Pictures to start from, for a base model that edits: which picture each belongs to, and what is wrong."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dopsd_app.data.caption_file import SOURCE_COLUMNS, TABLES, parse_table
from dopsd_app.data.picture_file import Problem, fold_name, shown

MAX_SOURCES = 4  # of one picture: each costs a step as much as the picture itself
TARGETS = "target"  # a folder with the wanted results, beside that of what they are made from
FOLDERS = ("source", "sources")  # in the second, copies of a data set hold cat-1.png and cat-2.png of cat.png
_BESIDE = re.compile(r"(.+)_source(?:_(\d{1,4}))?", re.IGNORECASE | re.DOTALL)
_NUMBERED = re.compile(r"(.+)[-_](\d{1,4})", re.DOTALL)


@dataclass(frozen=True)
class SourceName:
    """What a file's name tells of a picture to start from."""

    owner: str  # the folded stem of the picture that it belongs to
    number: int  # its place among the sources of that picture


def source_name(stem: str) -> SourceName | None:
    """Of `cat_source` or `cat_source_2`; None for other names."""
    found = _BESIDE.fullmatch(stem)
    return SourceName(fold_name(found[1]), int(found[2] or 0)) if found else None


@dataclass(frozen=True)
class Pairs:
    """The pictures of a folder, parted into those to draw and those to start from."""

    targets: list[Path]
    sources: dict[Path, tuple[Path, ...]]  # by target
    orphans: list[Path]  # sources of no picture


def pair(pictures: Sequence[Path], captioned: set[str], folder_files: Iterable[Path]) -> Pairs:
    """Parts pictures by their names, and adds those of a folder of sources, which have the target's name.

    `captioned` holds the folded stems that have captions: without a target, such a picture is one itself.
    """
    targets = [picture for picture in pictures if source_name(picture.stem) is None]
    owners = {fold_name(picture.stem): picture for picture in targets}
    found: dict[Path, list[tuple[int, Path]]] = {}
    orphans = []
    for picture in pictures:
        if named := source_name(picture.stem):
            if owner := owners.get(named.owner):
                found.setdefault(owner, []).append((named.number, picture))
            elif fold_name(picture.stem) in captioned:
                targets.append(picture)
            else:
                orphans.append(picture)
    for file in folder_files:
        named = _name_in_folder(file.stem, owners)
        if named is None:
            orphans.append(file)
        else:
            found.setdefault(owners[named.owner], []).append((named.number, file))
    sources = {owner: tuple(file for _, file in sorted(files)) for owner, files in found.items()}
    return Pairs(targets, sources, orphans)


def _name_in_folder(stem: str, owners: dict[str, Path]) -> SourceName | None:
    """In a folder of sources: the target's own name, or that with a number; None where there is no target."""
    if fold_name(stem) in owners:
        return SourceName(fold_name(stem), 0)
    numbered = _NUMBERED.fullmatch(stem)
    if numbered and fold_name(numbered[1]) in owners:
        return SourceName(fold_name(numbered[1]), int(numbered[2]))
    return None


def find_place(folder: Path) -> Path:
    """Where the pictures of a folder lie that are to be drawn: in it, or in its folder `target`."""
    apart = folder / TARGETS
    tables = any((folder / name).exists() for name in TABLES)
    return apart if apart.is_dir() and not tables else folder


def has_sources(folder: Path) -> bool:
    """Whether a folder holds pictures to start from, as far as names tell: which preset suits it."""
    if any((folder / name).is_dir() for name in FOLDERS):
        return True
    try:
        if any(source_name(path.stem) for path in folder.iterdir() if path.suffix.lower() != ".txt"):
            return True
        tables = [parse_table(folder / name)[0] for name in TABLES if (folder / name).is_file()]
    except (OSError, ValueError):  # whoever reads the folder says what is wrong
        return False
    rows = [row for table in tables for row in table.values()]
    return any(isinstance(row, dict) and row.keys() & set(SOURCE_COLUMNS) for row in rows)


def find_copies(dataset: Path, number: int) -> list[Path]:
    """The sources of the picture of this number, from 1, in a folder that `copy_examples` has written."""
    return sorted((dataset / FOLDERS[1]).glob(f"{number:02}-*.png"))


def count_copies(dataset: Path) -> int:
    """The most sources that a picture has there."""
    files = (dataset / FOLDERS[1]).glob("*-*.png")
    return max(Counter(file.stem.partition("-")[0] for file in files).values(), default=0)


def orphan_message(name: str) -> str:
    """What is said of a picture to start from that belongs to no picture."""
    return (
        f"{shown(name)} is a source picture, and the picture that is made from it is missing. Add that under"
        " the same name without “_source”, or remove it."
    )


def check_sources(pictures: Sequence[tuple[str, int]], *, needed: bool = False) -> Iterator[Problem]:
    """What is wrong with how many sources pictures have: all have some, or none. By name and number.

    `needed`: none would be wrong too.
    """
    some = needed or any(number for _, number in pictures)
    for name, number in pictures:
        if some and not number:
            others = "" if needed else ", and others have one"
            yield Problem(name, f"{name} has no source picture{others}. Add what it is made from.")
        if number > MAX_SOURCES:
            yield Problem(
                name, f"{name} has {number} source pictures, and {MAX_SOURCES} are the most. Remove some."
            )
