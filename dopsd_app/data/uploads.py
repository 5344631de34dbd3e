"""What comes into a draft: uploaded pictures and captions, an example, or an earlier run's.

An uploaded file gives its content and, for people and for finding its caption, its name; never a path.
"""

import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePath, PureWindowsPath

from PIL import Image

from dopsd_app.config import KINDS, SUBJECT, Preset, TrainConfig, list_presets
from dopsd_app.data.caption_file import parse_metadata, parse_row, read_text
from dopsd_app.data.creatures import is_creature
from dopsd_app.data.draft_file import DraftContent, DraftError, Item, change_content
from dopsd_app.data.drafts import (
    MAX_CAPTION_TEXT,
    Draft,
    delete_draft,
    delete_files,
    new_draft,
    read_draft,
    set_settings,
)
from dopsd_app.data.picture_file import PicturesError, decode, fold_name, picture_format, shown
from dopsd_app.data.pictures import (
    IGNORED,
    MAX_PICTURES,
    PICTURE_SUFFIXES,
    hash_pixels,
    natural_order,
)

MAX_PICTURE_BYTES = 25_000_000
MAX_FILES = 100  # in one upload
MAX_WAITING = 100  # captions that are kept until their pictures come
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

    presets = [(preset, differences(preset)) for preset in list_presets()]
    preset, changes = min(presets, key=lambda pair: _likely(*pair))
    kind = next((kind for kind in KINDS if preset.name.endswith(kind)), SUBJECT)
    return _filled_draft(drafts_dir, dataset, {"preset": preset.name, "kind": kind, **changes})


def _likely(preset: Preset, changes: dict) -> tuple:
    """The less, the likelier did a run with these changes come from the preset; most are of a subject."""
    return "base_model" in changes, len(changes), not preset.name.endswith(SUBJECT)


def _filled_draft(drafts_dir: Path, folder: Path, settings: dict) -> Draft:
    draft = new_draft(drafts_dir)
    try:
        added = _add(set_settings(draft, **settings), sorted(folder.iterdir()))
        if added.problems:
            raise DraftError("\n".join(added.problems))
    except BaseException:
        delete_draft(draft)
        raise
    return added.draft


def add_pictures(draft: Draft, paths: Iterable[str | Path]) -> Added:
    """Adds uploaded files: pictures, their captions (.txt of the same name, or metadata.jsonl), prompts.txt.

    A caption may come before its picture: it waits in the draft. Whatever is refused is named.
    """
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
    added = _add(draft, small)
    return replace(added, problems=(*problems, *added.problems))


def _add(draft: Draft, paths: list[Path]) -> Added:
    problems, notes, pictures = [], [], []
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
                captions += _metadata_captions(path, problems)
            elif path.suffix.lower() == ".txt":
                captions.append((path.name, read_text(path).strip()))
            else:
                problems.append(f"{name} is neither a picture nor a caption file (.txt). It was left out.")
        except ValueError as error:
            problems.append(str(error))
    keys = _add_pictures(draft, pictures, problems)
    _add_captions(draft, captions, problems, notes)
    return Added(read_draft(draft.path), tuple(keys), tuple(problems), tuple(notes))


def _metadata_captions(path: Path, problems: list[str]) -> list[tuple[str, str]]:
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
