"""What comes into a draft: uploaded pictures and captions, an example, or an earlier run's.

An uploaded file gives its content and, for people and for finding its caption, its name; never a path.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

from dopsd_app.config import EDIT, TrainConfig
from dopsd_app.data.archive import is_zip, unpack
from dopsd_app.data.caption_file import (
    CAPTION_SUFFIXES,
    TABLES,
    parse_row,
    parse_table,
    read_text,
)
from dopsd_app.data.crops import CROPS_FILE, MIDDLE, read_crops
from dopsd_app.data.draft_file import DraftError
from dopsd_app.data.drafts import (
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
from dopsd_app.data.example import Example, Note, natural_order
from dopsd_app.data.folder import (
    Scan,
    is_backup,
    is_document,
    is_ignored,
    is_picture,
    name_in,
    scan_folder,
)
from dopsd_app.data.kept_pictures import TOO_MANY, add_source, enlist, keep, stem_of, too_many
from dopsd_app.data.picture_file import PicturesError, Problem, decode, shown
from dopsd_app.data.pictures import MAX_PICTURES
from dopsd_app.data.run_settings import draft_settings
from dopsd_app.data.source_pictures import MAX_SOURCES, count_copies, find_copies, orphan_message, source_name
from dopsd_app.data.uploaded_captions import FileCaption, add_captions, one_each, read_captions

MAX_PICTURE_BYTES = 25_000_000
MAX_ZIP_BYTES = 1_000_000_000  # as much as the server takes at once: 200 pictures of a phone
MAX_FILES = MAX_PICTURES * (2 + MAX_SOURCES)  # in one upload: each with its caption and its sources
MAX_WAITING = MAX_FILES  # captions that are kept until their pictures come
MAX_PROMPTS = 8  # of a prompts.txt: every preview draws them all
EXAMPLES = Path(__file__).parents[2] / "assets" / "examples"


Count = Callable[[int, int], object]  # is told how many pictures of how many have been read


def count_for_nobody(done: int, total: int) -> None:
    """Where nobody waits before a screen."""


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
    return _filled_draft(drafts_dir, dataset, draft_settings(config, edits=count_copies(dataset) > 0))


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
            problems += [problem for path in copies for problem in add_source(draft, item.key, path)]
        if problems:
            raise DraftError("\n".join(problems))
        return read_draft(draft.path)
    except BaseException:
        delete_draft(draft)
        raise


def add_pictures(draft: Draft, paths: Iterable[str | Path], count: Count = count_for_nobody) -> Added:
    """Adds uploaded files: pictures, their captions (.txt of the same name, or metadata.jsonl), prompts.txt.

    A caption may come before its picture: it waits in the draft. `cat_source.png` is what `cat.png` is made
    from, which is there or comes with it. A zip is read as a folder is. Whatever is refused is named.
    `count` is called before each picture and after the last.
    """
    small, problems = _usable(paths)
    parts = [_add(draft, [path for path in small if not is_zip(path)], count)]
    parts += [_add_zip(draft, path, count) for path in small if is_zip(path)]
    return together(parts, problems)


def together(parts: Sequence[Added], problems: Sequence[str] = ()) -> Added:
    """What became of several parts of an upload, the last of which has the draft as it is now."""
    refused = [problem for part in parts for problem in part.problems]
    return Added(
        parts[-1].draft,
        tuple(key for part in parts for key in part.keys),
        tuple(sorted((*problems, *refused), key=lambda problem: not problem.startswith(TOO_MANY))),
        tuple(note for part in parts for note in part.notes),
    )


def add_sources(draft: Draft, key: str, paths: Iterable[str | Path]) -> Added:
    """Adds uploaded pictures to what the picture of this key is made from, in natural order."""
    check_keys(read_draft(draft.path).content, [key])
    small, problems = _usable(paths)
    for path in sorted(small, key=lambda path: natural_order(path.name)):
        problems += add_source(draft, key, path)
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
        elif path.stat().st_size > (MAX_ZIP_BYTES if is_zip(path) else MAX_PICTURE_BYTES):
            most = MAX_ZIP_BYTES if is_zip(path) else MAX_PICTURE_BYTES
            advice = "Send it in parts." if is_zip(path) else "Save it as JPEG, or scale it down."
            problems.append(f"{shown(path.name)} is larger than {most // 10**6} MB. {advice}")
        else:
            small.append(path)
    return small, problems


def _add(draft: Draft, paths: list[Path], count: Count = count_for_nobody) -> Added:
    problems, notes, pictures = [], [], []
    sources: dict[str, list[str]] = {}  # stem of a picture to start from: those of what is made from it
    captions: list[FileCaption] = []
    for path in sorted(paths, key=lambda path: natural_order(path.name)):
        name = shown(path.name)
        try:
            if name.casefold() == "prompts.txt":
                notes.append(_take_prompts(draft, path))
            elif is_ignored(name):
                continue
            elif is_picture(path):
                pictures.append(path)
            elif is_backup(name) or is_document(name):
                notes.append(f"{name} is no picture and no caption. It was left out.")
            elif name.casefold() in TABLES:
                captions += _read_table(path, sources, problems)
            elif path.suffix.lower() in CAPTION_SUFFIXES:
                captions += read_captions(path, path.name, notes)
            else:
                problems.append(f"{name} is neither a picture nor a caption file (.txt). It was left out.")
        except ValueError as error:
            problems.append(str(error))
    captions = one_each(captions)
    owners = {path: _owners(path, draft, pictures, captions, sources) for path in pictures}
    targets = [(path, shown(path.name)) for path in pictures if not owners[path]]
    keys = _add_pictures(draft, targets, problems, count)
    came = {key: shown(path.name) for path, key in keys.items()}
    add_captions(draft, captions, came, problems, notes, most_waiting=MAX_WAITING)
    items = {item.stem: item.key for item in read_draft(draft.path).items}
    for path in pictures:
        for owner in owners[path]:
            missing = [orphan_message(path.name)]
            problems += add_source(draft, items[owner], path) if owner in items else missing
    return Added(_as_edit(read_draft(draft.path)), tuple(keys.values()), tuple(problems), tuple(notes))


def _take_prompts(draft: Draft, path: Path) -> str:
    """Takes the prompts of the previews from a file; returns what is said of it."""
    prompts = [line.strip() for line in read_text(path).text.splitlines() if line.strip()]
    set_settings(draft, preview_prompts=prompts[:MAX_PROMPTS])
    return f"The previews use prompts.txt: its first {MAX_PROMPTS} lines at most."


def _add_zip(draft: Draft, path: Path, count: Count) -> Added:
    """Adds what is in a zip, laid out as folders are that the command line takes."""
    with tempfile.TemporaryDirectory(dir=draft.path) as place:
        problems = unpack(path, Path(place), MAX_PICTURE_BYTES)
        return _add_tree(draft, Path(place), shown(path.name), problems, count)


def add_folder(
    draft: Draft, files: Sequence[tuple[str, str | Path]], count: Count = count_for_nobody
) -> Added:
    """Adds the files of a folder that was chosen, each with its path that begins with the folder's name.

    It is read as a zip of it is: sources, splits and crops count as they do on the command line.
    """
    small, problems = _usable(path for _, path in files)
    usable = set(small)
    with tempfile.TemporaryDirectory(dir=draft.path) as place:
        for name, path in files:
            inside = PurePosixPath(name)
            if inside.is_absolute() or ".." in inside.parts or any(sign in name for sign in ":\\\0"):
                problems.append(f"{shown(name)} was left out: its name leads out of the folder.")
            elif Path(path) in usable and not any(map(_is_passed_over, inside.parts)):
                target = Path(place) / inside
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        for folder in Path(place).iterdir():  # the one that was chosen, unless nothing of it was taken
            return _add_tree(draft, folder, shown(folder.name), problems, count)
    return Added(read_draft(draft.path), (), tuple(problems), ())


def _is_passed_over(part: str) -> bool:
    return is_ignored(part) and part != "prompts.txt"


def _add_tree(draft: Draft, folder: Path, name: str, problems: list[str], count: Count) -> Added:
    """Adds what is in a folder; problems are those of making it, which has this name for people."""
    files = [file for file in folder.rglob("*") if file.is_file() and not _is_passed_over(file.name)]
    if any(_is_caption(file) for file in files) and not any(map(is_picture, files)):
        added = _add(draft, files, count)
        return replace(added, problems=(*problems, *added.problems))
    scan = scan_folder(folder)
    keys, notes = _add_scan(draft, scan, problems, count)
    if not scan.examples and not problems:
        problems.append(f"{name} holds no pictures.")
    return Added(_as_edit(read_draft(draft.path)), tuple(keys), tuple(problems), tuple(notes))


def _is_caption(path: Path) -> bool:
    name = path.name.casefold()
    return name in TABLES or (path.suffix.lower() in CAPTION_SUFFIXES and not is_document(name))


def _add_scan(draft: Draft, scan: Scan, problems: list[str], count: Count) -> tuple[list[str], list[str]]:
    """Adds what a folder holds; returns the keys of the new pictures, and notes."""
    unused = [said.caption_file for said in scan.said if isinstance(said, Note) and said.caption_file]
    notes = [said.message for said in scan.said if isinstance(said, Note) and not said.caption_file]
    # Captions can be written on the page, and shortened.
    problems += [said.message for said in scan.said if isinstance(said, Problem) and not said.caption]
    if (prompts := scan.folder / "prompts.txt").is_file():
        try:
            notes.append(_take_prompts(draft, prompts))
        except ValueError as error:
            problems.append(str(error))
    if scan.trigger_word and not draft.trigger_word:
        set_settings(draft, trigger_word=scan.trigger_word)
        notes.append(f"The trigger word is “{scan.trigger_word}”, after the folder's name.")
    names = {example.image: name_in(example.image, scan.folder) for example in scan.examples}
    keys = _add_pictures(draft, list(names.items()), problems, count)
    typed = {said.picture: said.typed for said in scan.said if isinstance(said, Problem)}
    captions = []
    for example in scan.examples:
        name = names[example.image]
        if text := "\n".join(example.captions) or typed.get(name, ""):
            captions.append(FileCaption(name, text))
        if key := keys.get(example.image):
            problems += _complete(draft, key, example)
    for file in unused:
        try:
            captions += read_captions(file, name_in(file, scan.folder), notes)
        except ValueError as error:
            problems.append(str(error))
    came = {key: names[image] for image, key in keys.items()}
    add_captions(draft, captions, came, problems, notes, most_waiting=MAX_WAITING)
    return list(keys.values()), notes


def _complete(draft: Draft, key: str, example: Example) -> list[str]:
    """Gives a new picture what belongs to it, but for its captions; returns what was refused."""
    if example.focus != MIDDLE:
        set_focus(draft, key, example.focus)
    return [problem for source in example.source_images for problem in add_source(draft, key, source)]


def _owners(
    path: Path,
    draft: Draft,
    pictures: list[Path],
    captions: list[FileCaption],
    sources: dict[str, list[str]],
) -> list[str]:
    """The stems of the pictures that are made from this one; none where it is itself one to draw.

    By metadata.jsonl, or by its name: where there is no such picture, one with a caption is meant as it is.
    """
    stem, named = stem_of(path.name), source_name(PureWindowsPath(path.name).stem)
    if stem in sources or named is None:
        return sources.get(stem, [])
    stems = {item.stem for item in draft.items} | {stem_of(picture.name) for picture in pictures}
    captioned = {caption.stem for caption in captions}
    return [] if named.owner not in stems and stem in captioned else [named.owner]


def _read_table(path: Path, sources: dict[str, list[str]], problems: list[str]) -> list[FileCaption]:
    """Its captions; what is made from which picture goes into `sources`."""
    table = path.name.casefold()
    rows, broken = parse_table(path)
    if broken:
        problems.append(f"{table} is not valid JSON in line {broken[0]}. Its other lines were read.")
    captions = []
    for number, row in list(rows.items())[:MAX_FILES]:
        try:
            parsed = parse_row(row)
            if not all(isinstance(text, str) for text in parsed.texts):
                raise ValueError("has no caption that is text.")
            lines = "\n".join(" ".join(text.split()) for text in parsed.texts)
            captions.append(FileCaption(parsed.file_name, lines))
            for source in parsed.sources:
                if stem_of(source) == stem_of(parsed.file_name):  # an upload has no folders
                    raise ValueError("names a source picture like its result. Give it another name.")
                sources.setdefault(stem_of(source), []).append(stem_of(parsed.file_name))
        except ValueError as error:
            problems.append(f"Line {number} of {table} {error}")
    return captions


def _add_pictures(
    draft: Draft, pictures: list[tuple[Path, str]], problems: list[str], count: Count
) -> dict[Path, str]:
    """Adds the pictures that can be used, by file and name, and returns their keys.

    They are opened without the lock. What is said of too many goes first.
    """
    keys: dict[Path, str] = {}
    before, left_out = len(read_draft(draft.path).items), []
    for number, (path, name) in enumerate(pictures):
        count(number, len(pictures))
        if before + len(keys) >= MAX_PICTURES:
            left_out.append(name)
            continue
        try:
            picture, remarks = decode(path, name)
            item = keep(draft, picture, name, stem_of(path.name), remarks)
        except PicturesError as error:
            problems.append(str(error))
            continue
        try:
            enlist(draft, item)
            keys[path] = item.key
        except DraftError as error:
            delete_files(draft, item.key)
            problems.append(str(error))
    count(len(pictures), len(pictures))
    if left_out:
        problems.insert(0, too_many(left_out, len(pictures)))
    return keys
