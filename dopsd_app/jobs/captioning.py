"""Asking for captions, and where those that were written go: to a draft, or into files beside pictures.

What a person writes wins: a caption is put only where that stands which stood there when it was asked for.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from dopsd_app.config import EDIT, ConfigError, TrainConfig
from dopsd_app.data.draft_file import DraftContent, DraftError, change_content, draft_lock
from dopsd_app.data.drafts import Draft, draft_config
from dopsd_app.data.example import Example
from dopsd_app.errors import KnownFailure
from dopsd_app.files import make_value, read_value, replace_file
from dopsd_app.jobs.job import Job, RunError, create_job, kind_or_none, list_jobs, start_lock, sweep
from dopsd_app.jobs.kinds import CAPTION
from dopsd_app.jobs.queue import put_in_queue, send_command, start_next
from dopsd_app.models.buckets import USUAL_MULTIPLE, side_multiple
from dopsd_app.models.captioner_facts import LENGTHS
from dopsd_app.models.captioner_words import Concept, plain_word

MAX_JOBS = 5  # ended ones
WRITTEN = "written_captions.json"  # in a draft's folder


@dataclass(frozen=True)
class ToCaption:
    """A picture that a caption is wanted for."""

    key: str  # of the draft; else its file name
    picture: str  # path
    sources: tuple[str, ...]  # of an edit: what it is made from
    caption: str  # that stood there when it was asked for
    focus: tuple[float, float]  # where its crop lies: training sees no more
    caption_file: str  # path of the one beside it; "" in a draft


@dataclass(frozen=True)
class CaptionRequest:
    """What is to be written."""

    folder: str  # of the draft; else that of the pictures, where each caption is a file beside its picture
    is_draft: bool
    concept: Concept
    length: str  # of LENGTHS: the one that is put where captions go
    pictures: tuple[ToCaption, ...]
    resolution: int  # of training, which crops
    multiple: int  # pixels: of the crops' sides

    def put(self, asked: ToCaption, texts: Mapping[str, str]) -> bool:
        """Puts what was written for a picture where it belongs; False where a person has written meanwhile.

        `texts` holds it by length.
        """
        if self.is_draft:
            return _put_into_draft(Path(self.folder), asked, texts, self.length)
        file = Path(asked.caption_file)
        if _read_beside(file) != asked.caption:
            return False
        replace_file(file, texts[self.length] + "\n")
        return True


@dataclass(frozen=True)
class Written:
    """What a draft remembers of the captions that were written for it."""

    length: str = "medium"  # that was asked for last
    what: str = ""  # the person's word for the subject
    texts: dict[str, dict[str, str]] = field(default_factory=dict)  # by picture key and length

    def is_ours(self, key: str, caption: str) -> bool:
        """Whether a picture's caption is as it was written, and no person's."""
        return caption in self.texts.get(key, {}).values()


# --- asking


def ask_for_captions(runs_dir: Path, request: CaptionRequest) -> Job:
    """Puts the writing of captions into the queue; `RunError` while some are written for the same folder."""
    if not request.pictures:
        raise RunError("No picture lacks a caption.")
    if request.concept.kind == EDIT:
        if any(not asked.sources for asked in request.pictures):
            raise RunError("Say first what each picture is made from: the instruction is what was changed.")
    elif not request.concept.trigger_word:
        raise RunError("Write the trigger word first: it stands in every caption.")
    runs_dir.mkdir(parents=True, exist_ok=True)
    with start_lock(runs_dir):
        if (job := latest_captions(runs_dir, Path(request.folder))) and job.status.busy:
            raise RunError("Captions are being written already. Wait for them, or cancel first.")
        sweep(runs_dir, CAPTION, MAX_JOBS)
        job = create_job(runs_dir, CAPTION, asdict(request))
        put_in_queue(job)
    start_next(runs_dir)
    return job


def ask_for_draft(
    runs_dir: Path, draft: Draft, length: str, what: str, keys: Iterable[str] | None = None
) -> Job:
    """The same for a draft: for its pictures of these keys, or for those without a caption."""
    _check_length(length)
    what = plain_word(what)
    wanted = None if keys is None else set(keys)
    pictures = [
        ToCaption(
            item.key,
            str(draft.pictures / f"{item.key}.png"),
            tuple(str(draft.pictures / f"{source.key}.png") for source in item.sources),
            item.caption,
            item.focus,
            "",
        )
        for item in draft.items
        if (not item.caption.strip() if wanted is None else item.key in wanted)
    ]
    concept = Concept(draft.trigger_word, draft.kind, what)
    config = _config_of_crops(draft)
    sizes = (config.resolution, side_multiple(config))
    request = CaptionRequest(str(draft.path), True, concept, length, tuple(pictures), *sizes)
    job = ask_for_captions(runs_dir, request)
    _change_written(draft.path, lambda written: replace(written, length=length, what=what))
    return job


def _config_of_crops(draft: Draft) -> TrainConfig:
    try:
        return draft_config(draft)
    except ConfigError:  # reported where the settings are
        return TrainConfig()


def ask_for_folder(runs_dir: Path, folder: Path, concept: Concept, length: str, *, overwrite: bool) -> Job:
    """The same for a folder of pictures, where captions are files; with `overwrite` for all of them."""
    from dopsd_app.data.caption_file import TABLES
    from dopsd_app.data.folder import scan_folder  # brings Pillow

    if not folder.is_dir():
        raise RunError(f"There is no folder {folder}.")
    scan = scan_folder(folder)
    if table := next((name for name in TABLES if (scan.folder / name).exists()), ""):
        raise RunError(f"The captions of {folder} are in its {table}: .txt files would not be read.")
    if not scan.examples:
        raise RunError(f"There is no picture in {folder}.")
    stems = Counter(_place(example.image) for example in scan.examples)
    pictures = []
    for example in scan.examples:
        file = _file_to_write(example, alone=stems[_place(example.image)] == 1)
        before = _read_beside(file)
        if overwrite or not (before.strip() or example.captions):
            key = example.image.relative_to(scan.folder).as_posix()
            sources = tuple(map(str, example.source_images))
            pictures.append(ToCaption(key, str(example.image), sources, before, example.focus, str(file)))
    concept = replace(concept, what=plain_word(concept.what))
    # Which base will learn from the folder is not known here.
    sizes = (TrainConfig().resolution, USUAL_MULTIPLE)
    request = CaptionRequest(str(scan.folder), False, concept, length, tuple(pictures), *sizes)
    return ask_for_captions(runs_dir, request)


def _place(picture: Path) -> tuple[Path, str]:
    """What a picture shares with those whose captions it could be taken for."""
    return picture.parent, picture.stem.casefold()


def _file_to_write(example: Example, *, alone: bool) -> Path:
    """Where a caption goes: into the file that is read for this picture, and no other picture's."""
    if file := example.caption_file:
        return file.with_suffix(".txt") if file.suffix.lower() == ".json" else file
    return (
        example.image.with_suffix(".txt") if alone else example.image.with_name(f"{example.image.name}.txt")
    )


def _read_beside(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""


def read_asked(job: Job) -> CaptionRequest:
    """What a job was asked for; `RunError` where that cannot be read."""
    try:
        return make_value(CaptionRequest, job.request)
    except ValueError as error:
        if isinstance(error, KnownFailure):
            raise
        raise RunError(f"{job.id} cannot be read: its job.json is damaged. Ask for it again.") from error


def latest_captions(runs_dir: Path, folder: Path) -> Job | None:
    """The newest job that writes captions for a draft or a folder of pictures."""
    for job in reversed(list_jobs(runs_dir)):
        if f"-{CAPTION.name}-" not in job.id:  # asked twice a second: without a look into others' files
            continue
        with suppress(KnownFailure):  # damaged, or of another version
            if kind_or_none(job) == CAPTION and job.request.get("folder") == str(folder):
                return job
    return None


def cancel_captions(runs_dir: Path, folder: Path) -> None:
    """Ends the writing for a draft or a folder after the picture at hand; what is written stays."""
    if (job := latest_captions(runs_dir, folder)) and job.status.busy:
        send_command(job, "stop")


# --- what was written


def read_written(folder: Path) -> Written:
    """What a draft remembers of the captions that were written for it; nothing where that is damaged."""
    try:
        return read_value(Written, (folder / WRITTEN).read_bytes())
    except (OSError, ValueError):
        return Written()


def use_length(draft: Draft, length: str) -> Draft:
    """Takes the captions of another length, where they stand as they were written; nothing is computed."""
    _check_length(length)
    written = read_written(draft.path)

    def change(content: DraftContent) -> DraftContent:
        items = [
            replace(item, caption=written.texts[item.key].get(length, item.caption))
            if written.is_ours(item.key, item.caption)
            else item
            for item in content.items
        ]
        return replace(content, items=tuple(items))

    changed = Draft(draft.path, change_content(draft.path, change))
    _change_written(draft.path, lambda before: replace(before, length=length))
    return changed


def _check_length(length: str) -> None:
    if length not in LENGTHS:
        raise RunError(f"`length` must be one of {', '.join(LENGTHS)}, got {length[:50]!r}.")


def _put_into_draft(folder: Path, asked: ToCaption, texts: Mapping[str, str], length: str) -> bool:
    # Remembered first: whoever sees the caption can tell that it is none of a person's.
    _change_written(folder, lambda written: replace(written, texts={**written.texts, asked.key: {**texts}}))
    put = False

    def change(content: DraftContent) -> DraftContent:
        nonlocal put
        items = []
        for item in content.items:
            if item.key == asked.key and item.caption == asked.caption:
                item, put = replace(item, caption=texts[length]), True
            items.append(item)
        return replace(content, items=tuple(items))

    change_content(folder, change)
    return put


def _change_written(folder: Path, change) -> None:
    with draft_lock(folder.parent):
        if not folder.is_dir():
            raise DraftError("This draft is no longer there. Begin a new one.")
        replace_file(folder / WRITTEN, json.dumps(asdict(change(read_written(folder)))))
