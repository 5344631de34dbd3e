"""Captions that come into a draft in files: which picture each belongs to, by its whole name or its stem."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath

from dopsd_app.data.caption_file import (
    CAPTION_SUFFIXES,
    PICTURE_SUFFIXES,
    named_picture,
    read_caption_file,
)
from dopsd_app.data.draft_file import DraftContent, Item, change_content
from dopsd_app.data.drafts import MAX_CAPTION_TEXT, Draft
from dopsd_app.data.kept_pictures import stem_of
from dopsd_app.data.picture_file import fold_name, shown


@dataclass(frozen=True)
class FileCaption:
    """A caption and the name that says whose it is: of its own file, or of the picture in a table."""

    file_name: str
    text: str  # one caption per line

    @cached_property
    def whole(self) -> str:
        """The file name of its picture as it is compared; "" where only the stem is told."""
        return fold_name(named_picture(self.file_name))

    @cached_property
    def stem(self) -> str:
        return stem_of(self.file_name)

    @cached_property
    def key(self) -> str:
        """What it waits under, as long as its picture has not come."""
        return PurePosixPath(self.whole).name or self.stem

    @cached_property
    def rank(self) -> int:
        """The place of its file among several of one picture, of which the first counts."""
        suffix = PureWindowsPath(self.file_name).suffix.lower()
        return CAPTION_SUFFIXES.index(suffix) if suffix in CAPTION_SUFFIXES else 0


def read_captions(path: Path, name: str, notes: list[str]) -> list[FileCaption]:
    """The caption of a file that goes by `name`; nothing of a .json without one. ValueError as it is read."""
    if (read := read_caption_file(path)) is None:
        notes.append(f"{shown(name)} holds no caption under “caption” or “text”. It was left out.")
        return []
    texts, text = read
    if text.remark:
        notes.append(f"{shown(name)} {text.remark}")
    return [FileCaption(name, "\n".join(texts).strip())]


def one_each(captions: list[FileCaption]) -> list[FileCaption]:
    """Without those of a .json or .caption beside a .txt of the same picture."""
    by_stem: dict[str, list[FileCaption]] = {}
    for caption in captions:
        by_stem.setdefault(caption.stem, []).append(caption)

    def counts(caption: FileCaption) -> bool:
        return not any(
            other.rank < caption.rank and (other.key == caption.key or not (other.whole and caption.whole))
            for other in by_stem[caption.stem]
        )

    return [caption for caption in captions if counts(caption)]


def add_captions(
    draft: Draft,
    captions: Iterable[FileCaption],
    came: Mapping[str, str],
    problems: list[str],
    notes: list[str],
    *,
    most_waiting: int,
) -> None:
    """Puts captions at their pictures, or lets them wait; so too those that waited for what came now.

    `came` holds the file names of the pictures that came with them, by key.
    """

    def write(content: DraftContent) -> DraftContent:
        placing = _Placing(content, came, problems, notes)
        for caption in sorted(captions, key=lambda caption: not caption.whole):  # the surest first
            placing.put(caption, most_waiting)
        placing.put_waiting()
        return placing.content

    change_content(draft.path, write)


@dataclass
class _Placing:
    content: DraftContent
    came: Mapping[str, str]
    problems: list[str]
    notes: list[str]
    taken: set[str] = field(default_factory=set)  # keys of pictures that a caption named whole

    def put(self, caption: FileCaption, most_waiting: int) -> None:
        name = shown(PureWindowsPath(caption.file_name).name)
        if len(caption.text) > MAX_CAPTION_TEXT:
            self.problems.append(
                f"{name} holds more than {MAX_CAPTION_TEXT} characters. Shorten its captions."
            )
            return
        owners = self._owners(caption)
        if len(owners) > 1:
            self.problems.append(_undecided(name, owners))
        elif owners:
            self._write(owners[0], caption, name)
        elif len(self.content.waiting) >= most_waiting:
            self.problems.append(f"{name} was left out: it belongs to no picture.")
        else:
            waiting = {**self.content.waiting, caption.key: (name, caption.text)}
            self.content = replace(self.content, waiting=waiting)

    def put_waiting(self) -> None:
        """Gives the pictures that came, and have no caption, those that waited for them."""
        waiting = {key: FileCaption(*kept) for key, kept in self.content.waiting.items()}
        for key, caption in sorted(waiting.items(), key=lambda pair: not pair[1].whole):
            items = [item for item in self._items(self.came) if not item.caption.strip()]
            owners = _named_by(caption, [(item, self.came[item.key]) for item in items])
            if len(owners) > 1:
                self.problems.append(_undecided(caption.file_name, owners))
            elif owners:
                self._write(owners[0], caption, caption.file_name)
            if owners:
                left = {other: kept for other, kept in self.content.waiting.items() if other != key}
                self.content = replace(self.content, waiting=left)

    def _items(self, keys: Iterable[str]) -> list[Item]:
        return [item for item in self.content.items if item.key in keys]

    def _owners(self, caption: FileCaption) -> list[Item]:
        """The pictures that it may be of: those that came with it go first."""
        new = [(item, self.came[item.key]) for item in self._items(self.came)]
        every = [(item, item.name) for item in self.content.items]
        if caption.whole:
            for named in (new, every):
                if owners := _whole(caption, named):
                    return owners
        for named in (new, every):
            free = [(item, name) for item, name in named if item.key not in self.taken]
            if owners := _by_stem(caption, free):
                return owners
        return []

    def _write(self, owner: Item, caption: FileCaption, name: str) -> None:
        if owner.caption.strip() not in ("", caption.text.strip()):
            self.notes.append(f"{name} replaced the caption of {owner.name}.")
        items = [
            replace(item, caption=caption.text) if item.key == owner.key else item
            for item in self.content.items
        ]
        self.content = replace(self.content, items=tuple(items))
        if caption.whole:
            self.taken.add(owner.key)


def _named_by(caption: FileCaption, named: list[tuple[Item, str]]) -> list[Item]:
    return _whole(caption, named) or _by_stem(caption, named)


def _whole(caption: FileCaption, named: list[tuple[Item, str]]) -> list[Item]:
    """Those whose file name it tells: with its folders, or else without."""
    if not caption.whole:
        return []
    exactly = [item for item, name in named if fold_name(name) == caption.whole]
    return exactly or [item for item, name in named if fold_name(PurePosixPath(name).name) == caption.key]


def _by_stem(caption: FileCaption, named: list[tuple[Item, str]]) -> list[Item]:
    """Those of its stem; "a (2)" is one too, which the second a.png has here."""
    if exactly := [item for item, name in named if caption.stem == _stem(name) != item.stem]:
        return exactly
    return [item for item, _ in named if item.stem == caption.stem]


@lru_cache(maxsize=1_000)
def _stem(name: str) -> str:
    """A picture's name without its ending, as it is compared."""
    path = PurePosixPath(name)
    return fold_name(path.stem if path.suffix.lower() in PICTURE_SUFFIXES else path.name)


def _undecided(name: str, owners: list[Item]) -> str:
    names = [owner.name for owner in owners]
    which = f"{', '.join(names[:-1])} or {names[-1]}"
    files = {PurePosixPath(name).name for name in names}
    advice = "Write it beside its picture."
    if len(files) == len(names):
        advice = f"Name its file after the whole picture: {PurePosixPath(names[0]).name}.txt."
    return f"{name} was left out: it may be of {which}. {advice}"
