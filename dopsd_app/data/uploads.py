"""What comes into a draft: uploaded pictures and captions, an example, or an earlier run's.

An uploaded file gives its content and, for people and for finding its caption, its name; never a path.
"""

import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePath, PureWindowsPath

from PIL import Image

from dopsd_app.config import EDIT, KINDS, SUBJECT, Preset, TrainConfig, list_presets
from dopsd_app.data.caption_file import parse_metadata, parse_row, read_text
from dopsd_app.data.creatures import is_creature
from dopsd_app.data.crops import CROPS_FILE, read_crops
from dopsd_app.data.draft_file import DraftContent, DraftError, Item, Source, change_content
from dopsd_app.data.drafts import (
    MAX_CAPTION_TEXT,
    Draft,
    check_keys,
    delete_draft,
    delete_files,
    new_draft,
    read_draft,
    set_focus,
    set_settings,
    take_kind,
)
from dopsd_app.data.picture_file import PicturesError, decode, fold_name, shown
from dopsd_app.data.picture_formats import picture_format
from dopsd_app.data.pictures import (
    IGNORED,
    MAX_PICTURES,
    PICTURE_SUFFIXES,
    hash_pixels,
    natural_order,
)
from dopsd_app.data.source_pictures import MAX_SOURCES, count_copies, find_copies, orphan_message, source_name
from dopsd_app.errors import KnownFailure

MAX_PICTURE_BYTES = 25_000_000
MAX_FILES = MAX_PICTURES * (2 + MAX_SOURCES)  # in one upload: each with its caption and its sources
MAX_WAITING = MAX_FILES  # captions that are kept until their pictures come
MAX_PROMPTS = 8  # of a prompts.txt: every preview draws them all
THUMBNAIL_SIDE = 512  # pixels
KEPT_SIDE = 2048  # pixels of the shorter side: the largest crop needs 1536, and a photograph saves in a third
EXAMPLES = Path(__file__).parents[2] / "assets" / "examples"


@dataclass(frozen=True)
class Added:
    """What became of an upload; sentences for the person."""

    draft: Draft  # as it is now
    keys: tuple[str, ...]  # of the new pictures
    problems: tuple[str, ...]  # what was refused
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ExampleSet:
    """A set of pictures that comes with the program, for the built-in base."""

    name: str  # its folder, and its trigger word
    label: str
    kind: str


def list_examples() -> tuple[ExampleSet, ...]:
    """The example sets there are."""
    return (
        ExampleSet("zorp", "Zorp: a creature", "subject"),
        ExampleSet("mibbit", "Mibbit: another creature", "subject"),
    )


def load_example(drafts_dir: Path, name: str) -> Draft:
    """A new draft with an example's pictures, captions, trigger word and preview prompts."""
    example = next((example for example in list_examples() if example.name == name), None)
    if example is None:
        raise DraftError(f"There is no example {shown(name)}.")
    settings = {"name": name, "trigger_word": name, "kind": example.kind}
    return _filled_draft(drafts_dir, EXAMPLES / name, settings)


def clone_run(drafts_dir: Path, config: TrainConfig, dataset: Path) -> Draft:
    """A new draft with a run's settings, and its pictures and captions in the folder `dataset`."""
    settings = asdict(config)

    def differences(preset) -> dict:
        usual = {**asdict(TrainConfig()), **preset.settings}
        return {name: value for name, value in settings.items() if value != usual[name]}

    edits = count_copies(dataset) > 0
    suited = [preset for preset in list_presets() if preset.name.endswith(EDIT) == edits]
    presets = [(preset, differences(preset)) for preset in suited]
    preset, changes = min(presets, key=lambda pair: _likely(*pair))
    kind = next((kind for kind in KINDS if preset.name.endswith(kind)), SUBJECT)
    return _filled_draft(drafts_dir, dataset, {"preset": preset.name, "kind": kind, **changes})


def _likely(preset: Preset, changes: dict) -> tuple:
    """The less, the likelier did a run with these changes come from the preset; most are of a subject."""
    return "base_model" in changes, len(changes), not preset.name.endswith(SUBJECT)


def _filled_draft(drafts_dir: Path, folder: Path, settings: dict) -> Draft:
    draft = new_draft(drafts_dir)
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != CROPS_FILE)
        added = _add(set_settings(draft, **settings), files)
        keys = {item.name: item.key for item in added.draft.items}
        for name, focus in read_crops(folder).items():
            if name in keys:  # or somebody took the picture out of the folder
                set_focus(draft, keys[name], focus)
        problems = [*added.problems]
        for item in added.draft.items:
            copies = find_copies(folder, int(item.stem)) if item.stem.isdecimal() else []
            problems += [problem for path in copies for problem in _add_source(draft, item.key, path)]
        if problems:
            raise DraftError("\n".join(problems))
        return read_draft(draft.path)
    except BaseException:
        delete_draft(draft)
        raise


def add_pictures(draft: Draft, paths: Iterable[str | Path]) -> Added:
    """Adds uploaded files: pictures, their captions (.txt of the same name, or metadata.jsonl), prompts.txt.

    A caption may come before its picture: it waits in the draft. `cat_source.png` is what `cat.png` is made
    from, which is there or comes with it. Whatever is refused is named.
    """
    small, problems = _usable(paths)
    added = _add(draft, small)
    return replace(added, problems=(*problems, *added.problems))


def add_sources(draft: Draft, key: str, paths: Iterable[str | Path]) -> Added:
    """Adds uploaded pictures to what the picture of this key is made from, in natural order."""
    check_keys(read_draft(draft.path).content, [key])
    small, problems = _usable(paths)
    for path in sorted(small, key=lambda path: natural_order(path.name)):
        problems += _add_source(draft, key, path)
    return Added(_as_edit(read_draft(draft.path)), (), tuple(problems), ())


def _as_edit(draft: Draft) -> Draft:
    """The draft as one of an edit, where it has pictures to start from."""
    return take_kind(draft, EDIT) if draft.sources and draft.kind != EDIT else draft


def _usable(paths: Iterable[str | Path]) -> tuple[list[Path], list[str]]:
    """The files of an upload that may be opened, and what is said of the others."""
    paths = [Path(path) for path in paths]
    problems = [
        f"{shown(path.name)} was left out: {MAX_FILES} files at once are the most."
        for path in paths[MAX_FILES:]
    ][:1]
    small = []
    for path in paths[:MAX_FILES]:
        if not path.is_file():  # a pipe or a folder, too
            problems.append(f"{shown(path.name)} is no file.")
        elif path.stat().st_size > MAX_PICTURE_BYTES:
            limit = f"larger than {MAX_PICTURE_BYTES // 10**6} MB"
            problems.append(f"{shown(path.name)} is {limit}. Save it as JPEG, or scale it down.")
        else:
            small.append(path)
    return small, problems


def _add(draft: Draft, paths: list[Path]) -> Added:
    problems, notes, pictures = [], [], []
    sources: dict[str, list[str]] = {}  # stem of a picture to start from: those of what is made from it
    captions: list[tuple[str, str]] = []  # file name, caption lines
    for path in sorted(paths, key=lambda path: natural_order(path.name)):
        name = shown(path.name)
        try:
            if name.startswith(".") or name.casefold() in IGNORED[1:]:
                continue
            if picture_format(path) or path.suffix.lower() in PICTURE_SUFFIXES:
                pictures.append(path)
            elif name.casefold() == "prompts.txt":
                prompts = [line.strip() for line in read_text(path).splitlines() if line.strip()]
                set_settings(draft, preview_prompts=prompts[:MAX_PROMPTS])
                notes.append(f"The previews use prompts.txt: its first {MAX_PROMPTS} lines at most.")
            elif name == "metadata.jsonl":
                captions += _read_metadata(path, sources, problems)
            elif path.suffix.lower() == ".txt":
                captions.append((path.name, read_text(path).strip()))
            else:
                problems.append(f"{name} is neither a picture nor a caption file (.txt). It was left out.")
        except ValueError as error:
            problems.append(str(error))
    owners = {path: _owners(path, draft, pictures, captions, sources) for path in pictures}
    keys = _add_pictures(draft, [path for path in pictures if not owners[path]], problems)
    _add_captions(draft, captions, problems, notes)
    items = {item.stem: item.key for item in read_draft(draft.path).items}
    for path in pictures:
        for owner in owners[path]:
            missing = [orphan_message(path.name)]
            problems += _add_source(draft, items[owner], path) if owner in items else missing
    return Added(_as_edit(read_draft(draft.path)), tuple(keys), tuple(problems), tuple(notes))


def _owners(
    path: Path,
    draft: Draft,
    pictures: list[Path],
    captions: list[tuple[str, str]],
    sources: dict[str, list[str]],
) -> list[str]:
    """The stems of the pictures that are made from this one; none where it is itself one to draw.

    By metadata.jsonl, or by its name: where there is no such picture, one with a caption is meant as it is.
    """
    stem, named = _stem(path.name), source_name(PureWindowsPath(path.name).stem)
    if stem in sources or named is None:
        return sources.get(stem, [])
    stems = {item.stem for item in draft.items} | {_stem(picture.name) for picture in pictures}
    captioned = {_stem(name) for name, _ in captions}
    return [] if named.owner not in stems and stem in captioned else [named.owner]


def _add_source(draft: Draft, key: str, path: Path) -> list[str]:
    """Adds a picture to what that of this key is made from; returns why it was left out, where it was.

    One of the same name takes the place of the earlier one.
    """
    name = shown(path.name)
    try:
        picture, remarks = decode(path, name)
        kept = _keep(draft, picture, name, _stem(path.name), remarks)
    except KnownFailure as error:
        return [str(error)]
    source = Source(key=kept.key, name=name, size=kept.size, remarks=kept.remarks)
    replaced: list[str] = []

    def add(content: DraftContent) -> DraftContent:
        check_keys(content, [key])
        item = next(item for item in content.items if item.key == key)
        others = tuple(other for other in item.sources if other.name != name)
        if len(others) >= MAX_SOURCES:
            raise DraftError(f"{name} was left out: {MAX_SOURCES} source pictures are the most.")
        replaced.extend(other.key for other in item.sources if other.name == name)
        changed = replace(item, sources=(*others, source))
        items = tuple(changed if other.key == key else other for other in content.items)
        return replace(content, items=items)

    try:
        change_content(draft.path, add)
    except DraftError as error:
        delete_files(draft, source.key)
        return [str(error)]
    for old in replaced:
        delete_files(draft, old)
    return []


def _read_metadata(path: Path, sources: dict[str, list[str]], problems: list[str]) -> list[tuple[str, str]]:
    """File names and captions; what is made from which picture goes into `sources`."""
    rows, broken = parse_metadata(path)
    if broken:
        problems.append(f"metadata.jsonl is not valid JSON in line {broken[0]}. Its other lines were read.")
    captions = []
    for number, row in list(rows.items())[:MAX_FILES]:
        try:
            parsed = parse_row(row)
            if not all(isinstance(text, str) for text in parsed.texts):
                raise ValueError("has no caption that is text.")
            lines = "\n".join(" ".join(text.split()) for text in parsed.texts)
            captions.append((parsed.file_name, lines))
            for source in parsed.sources:
                if _stem(source) == _stem(parsed.file_name):  # an upload has no folders
                    raise ValueError("names a source picture like its result. Give it another name.")
                sources.setdefault(_stem(source), []).append(_stem(parsed.file_name))
        except ValueError as error:
            problems.append(f"Line {number} of metadata.jsonl {error}")
    return captions


def _add_pictures(draft: Draft, paths: list[Path], problems: list[str]) -> list[str]:
    """Adds the pictures that can be used and returns their keys; they are opened without the lock."""
    keys = []
    for path in paths:
        name = shown(path.name)
        if len(read_draft(draft.path).items) >= MAX_PICTURES:
            problems.append(_too_many(name))
            continue
        try:
            picture, remarks = decode(path, name)
            item = _keep(draft, picture, name, _stem(path.name), remarks)
        except PicturesError as error:
            problems.append(str(error))
            continue
        try:
            _enlist(draft, item)
            keys.append(item.key)
        except DraftError as error:
            delete_files(draft, item.key)
            problems.append(str(error))
    return keys


def _keep(draft: Draft, picture: Image.Image, name: str, stem: str, remarks: Iterable[str]) -> Item:
    """Writes the picture, pixels only, and its thumbnail; returns what is to be known of it."""
    key = secrets.token_hex(6)
    if (short := min(picture.size)) > KEPT_SIDE:
        width, height = (round(side * KEPT_SIDE / short) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    thumbnail = picture.copy()
    thumbnail.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    try:
        picture.save(draft.pictures / f"{key}.png", compress_level=1)  # as copy_examples does
        thumbnail.save(draft.thumbnails / f"{key}.webp", quality=85)
    except OSError as error:
        delete_files(draft, key)
        raise DraftError(f"The picture could not be kept: {error.strerror}. Free some space.") from error
    return Item(
        key=key,
        name=name,
        stem=stem,
        size=picture.size,
        pixels=hash_pixels(picture),
        remarks=tuple(remarks),
        creature=is_creature(thumbnail),
    )


def _enlist(draft: Draft, item: Item) -> None:
    """Puts a picture on the draft's list with the caption that waits for it; `DraftError` says why not."""

    def enlist(content: DraftContent) -> DraftContent:
        if len(content.items) >= MAX_PICTURES:  # another tab was faster
            raise DraftError(_too_many(item.name))
        names = {other.name for other in content.items}
        for other in content.items:
            if (other.pixels, other.size) == (item.pixels, item.size):
                new = f"The new {item.name}" if item.name in names else item.name
                old = "the one that is there" if other.name == item.name else other.name
                raise DraftError(f"{new} is the same picture as {old}. It was left out.")
        name = next(name for name in _names(item.name) if name not in names)
        waiting = dict(content.waiting)
        _, caption = waiting.pop(item.stem, ("", ""))
        items = (*content.items, replace(item, name=name, caption=caption))
        return replace(content, items=items, waiting=waiting)

    change_content(draft.path, enlist)


def _too_many(name: str) -> str:
    return f"{name} was left out: {MAX_PICTURES} pictures are the most. Remove one first."


def _names(name: str):
    """A name, and then the same with numbers: the page and its messages must tell two pictures apart."""
    yield name
    path = PurePath(name)
    for number in range(2, MAX_PICTURES + 2):
        yield f"{path.stem} ({number}){path.suffix}"


def _add_captions(
    draft: Draft, captions: list[tuple[str, str]], problems: list[str], notes: list[str]
) -> None:
    def write(content: DraftContent) -> DraftContent:
        for file_name, text in captions:
            content = _with_caption(content, file_name, text, problems, notes)
        return content

    change_content(draft.path, write)


def _with_caption(
    content: DraftContent, file_name: str, text: str, problems: list[str], notes: list[str]
) -> DraftContent:
    """The content with a caption at its picture, or waiting for it."""
    name, stem = shown(PureWindowsPath(file_name).name), _stem(file_name)
    if len(text) > MAX_CAPTION_TEXT:
        problems.append(f"{name} holds more than {MAX_CAPTION_TEXT} characters. Shorten its captions.")
        return content
    if owners := [item for item in content.items if item.stem == stem]:
        owner = next((item for item in owners if not item.caption.strip()), owners[-1])
        if owner.caption.strip() not in ("", text.strip()):
            notes.append(f"{name} replaced the caption of {owner.name}.")
        items = [replace(item, caption=text) if item is owner else item for item in content.items]
        return replace(content, items=tuple(items))
    if len(content.waiting) >= MAX_WAITING:
        problems.append(f"{name} was left out: it belongs to no picture.")
        return content
    return replace(content, waiting={**content.waiting, stem: (name, text)})


def _stem(file_name: str) -> str:
    """What a picture and its caption file share; a name from Windows may hold backslashes."""
    return fold_name(PureWindowsPath(file_name).stem)
