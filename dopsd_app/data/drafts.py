"""What a person prepares before a start: pictures, captions and settings, in a folder.

A draft is a value that was read from its folder; whatever changes the folder returns the value as it is then.
"""

import os
import re
import secrets
import shutil
import typing
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from dopsd_app.config import EDIT, KINDS, ConfigError, TrainConfig, load_preset, make_config, preset_for
from dopsd_app.data.caption_file import MAX_CAPTION, PLACEHOLDER, clean_captions, put_trigger_word
from dopsd_app.data.crops import check_focus
from dopsd_app.data.draft_file import (
    DraftContent,
    DraftError,
    Item,
    Source,
    change_content,
    draft_lock,
    read_content,
    write_content,
)
from dopsd_app.data.example import Example, Note
from dopsd_app.data.picture_file import PicturesError, Problem
from dopsd_app.data.pictures import (
    NO_TRIGGER_WORD,
    Dataset,
    PictureFacts,
    check_count,
    check_set,
    fill_prompts,
    note_enlarged,
    note_many,
    remarks_on,
)
from dopsd_app.data.source_pictures import check_sources
from dopsd_app.files import retry

DRAFT_NAME = re.compile(r"\d{8}-\d{6}-[0-9a-f]{12}")  # as `new_draft` makes it
MAX_CAPTION_TEXT = 10 * MAX_CAPTION  # characters in one caption box
KEPT_SETTINGS = ("name", "trigger_word", "preview_prompts", "device")  # they do not depend on the preset


@dataclass(frozen=True)
class Draft:
    """One draft as it stood when its folder was read."""

    path: Path  # absolute
    content: DraftContent

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def items(self) -> tuple[Item, ...]:
        return self.content.items

    @property
    def kind(self) -> str:
        """ "subject", "style" or "edit"."""
        return self.content.kind

    @property
    def preset(self) -> str:
        return self.content.preset

    @property
    def settings(self) -> dict:
        """What differs from the preset: names of `TrainConfig` and their values, not checked yet."""
        return self.content.settings

    @property
    def trigger_word(self) -> str:
        return self.settings.get("trigger_word", "")

    @property
    def waiting(self) -> tuple[str, ...]:
        """Names of caption files whose pictures have not come yet."""
        return tuple(name for name, _ in self.content.waiting.values())

    @property
    def pictures(self) -> Path:
        return self.path / "pictures"

    @property
    def thumbnails(self) -> Path:
        return self.path / "thumbnails"

    @property
    def sources(self) -> int:
        """The most pictures to start from that one picture has; 0 where nothing is edited."""
        return max((len(item.sources) for item in self.items), default=0)

    def thumbnail(self, item: Item | Source) -> Path:
        """The small copy of a picture that the page shows."""
        return self.thumbnails / f"{item.key}.webp"


# --- create, list, find, delete


def default_drafts_dir() -> Path:
    """Where drafts are kept: DOPSD_DRAFTS, or `drafts` in the current folder."""
    return Path(os.environ.get("DOPSD_DRAFTS") or "drafts").absolute()


def new_draft(drafts_dir: Path) -> Draft:
    """An empty draft with the settings of the default preset."""
    # The last part keeps others from guessing the folder's name.
    path = drafts_dir.absolute() / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(6)}"
    draft = Draft(path, DraftContent())
    draft.pictures.mkdir(parents=True)
    draft.thumbnails.mkdir()
    write_content(path, draft.content)
    return draft


def read_draft(path: Path) -> Draft:
    """The draft of this folder as it is now."""
    return Draft(path, read_content(path))


def is_new(draft: Draft) -> bool:
    """Whether nothing was put into the draft or changed in it."""
    return draft.content == DraftContent()


def list_drafts(drafts_dir: Path) -> list[Draft]:
    """All drafts, the one that was changed last first."""
    return _read_drafts(drafts_dir.absolute().glob("[!.]*/draft.json"))


def list_others(draft: Draft) -> list[Draft]:
    """All drafts but this one, the one that was changed last first."""
    files = draft.path.parent.glob("[!.]*/draft.json")
    return _read_drafts(file for file in files if file.parent != draft.path)


def _read_drafts(files: Iterable[Path]) -> list[Draft]:
    found = []
    for file in files:
        with suppress(DraftError, FileNotFoundError):  # damaged by hand, or just being deleted
            found.append((file.stat().st_mtime_ns, read_draft(file.parent)))
    return [draft for _, draft in sorted(found, key=lambda pair: pair[0], reverse=True)]


def current_draft(drafts_dir: Path) -> Draft:
    """The draft that was changed last; a new one where there is none."""
    drafts_dir.mkdir(parents=True, exist_ok=True)
    with draft_lock(drafts_dir):
        drafts = list_drafts(drafts_dir)
        return drafts[0] if drafts else new_draft(drafts_dir)


def find_draft(drafts_dir: Path, draft_id: str) -> Draft:
    """The draft of this id, which may come from anywhere."""
    path = drafts_dir.absolute() / draft_id
    if not DRAFT_NAME.fullmatch(draft_id) or not (path / "draft.json").is_file():
        raise DraftError("This draft is no longer there. Begin a new one.")
    return read_draft(path)


def make_current(draft: Draft) -> None:
    """Makes a draft the one that `current_draft` finds."""
    (draft.path / "draft.json").touch()


def delete_draft(draft: Draft) -> None:
    """Removes a draft and its pictures for good."""
    with draft_lock(draft.path.parent):
        # Renamed first, so that nobody ever reads half a draft.
        renamed = retry(lambda: draft.path.rename(draft.path.with_name(f".deleted-{draft.id}")))
    shutil.rmtree(renamed)


# --- change


def set_caption(draft: Draft, key: str, text: str) -> Draft:
    """Keeps what the person typed beside a picture: one caption per line."""
    return set_captions(draft, {key: text})


def set_captions(draft: Draft, texts: dict[str, str]) -> Draft:
    """Keeps what the person typed beside pictures, by their keys; none is kept where one cannot be."""
    for text in texts.values():
        if len(text) > MAX_CAPTION_TEXT:
            raise DraftError(f"This caption has {len(text)} characters. Shorten it to {MAX_CAPTION} at most.")

    def write(content: DraftContent) -> DraftContent:
        check_keys(content, texts)
        items = [replace(item, caption=texts.get(item.key, item.caption)) for item in content.items]
        return replace(content, items=tuple(items))

    return Draft(draft.path, change_content(draft.path, write))


def set_focus(draft: Draft, key: str, focus: tuple[float, float]) -> Draft:
    """Keeps where the crop of a picture lies: two shares from 0 to 1, as in `crops.crop`."""
    try:
        focus = check_focus(focus)
    except ValueError as error:
        raise DraftError(str(error)) from error

    def move(content: DraftContent) -> DraftContent:
        check_keys(content, [key])
        items = [replace(item, focus=focus) if item.key == key else item for item in content.items]
        return replace(content, items=tuple(items))

    return Draft(draft.path, change_content(draft.path, move))


def remove_picture(draft: Draft, key: str) -> Draft:
    """Takes a picture and its caption out of the draft."""

    def without(content: DraftContent) -> DraftContent:
        check_keys(content, [key])
        return replace(content, items=tuple(item for item in content.items if item.key != key))

    return _without_files(draft, Draft(draft.path, change_content(draft.path, without)))


def remove_sources(draft: Draft, key: str) -> Draft:
    """Takes away what a picture is made from, all of it."""

    def without(content: DraftContent) -> DraftContent:
        check_keys(content, [key])
        items = [replace(item, sources=()) if item.key == key else item for item in content.items]
        return replace(content, items=tuple(items))

    return _without_files(draft, Draft(draft.path, change_content(draft.path, without)))


def _without_files(before: Draft, now: Draft) -> Draft:
    """The draft as it is now, without the files of pictures that it had before."""
    kept = {picture.key for item in now.items for picture in (item, *item.sources)}
    for picture in (picture for item in before.items for picture in (item, *item.sources)):
        if picture.key not in kept:
            delete_files(now, picture.key)
    return now


def delete_files(draft: Draft, key: str) -> None:
    """Removes the files of a picture that is on no list; the key must be one of ours."""
    for file in (draft.pictures / f"{key}.png", draft.thumbnails / f"{key}.webp"):
        retry(lambda file=file: file.unlink(missing_ok=True))


def set_settings(draft: Draft, **changes) -> Draft:
    """Keeps settings by name, with "preset" and "kind" among them; None goes back to the preset's value.

    Values are checked by `draft_config`: a person may be in the middle of typing. Another preset drops what
    was changed of the last one, except `KEPT_SETTINGS`.
    """
    for name in changes.keys() - {"preset", "kind"}:
        _check_value(name, changes[name])

    def write(content: DraftContent) -> DraftContent:
        kind = changes.pop("kind", content.kind)
        if kind not in KINDS:
            raise ConfigError(f"`kind` must be one of {', '.join(KINDS)}, got {kind!r}.")
        preset = changes.pop("preset", content.preset)
        settings = _carried(content, preset) | changes
        settings = {name: value for name, value in settings.items() if value is not None}
        return replace(content, kind=kind, preset=preset, settings=settings)

    return Draft(draft.path, change_content(draft.path, write))


def take_kind(draft: Draft, kind: str) -> Draft:
    """Takes one of `config.KINDS` as what is taught; the preset of another kind gives way."""
    suited = preset_for(load_preset(draft.preset).settings["base_model"], kind)
    if draft.preset.endswith(KINDS) and suited and suited.endswith(kind):
        return set_settings(draft, kind=kind, preset=suited)
    return set_settings(draft, kind=kind)


def _check_value(name: str, value: object) -> None:
    """Refuses what no reader of a draft could bear; whether a value makes sense is asked later."""
    kind = typing.get_type_hints(TrainConfig).get(name)
    if kind is None:
        raise ConfigError(f"There is no setting {name[:100]}.")
    texts: typing.Any = [value] if kind is str else value if kind == tuple[str, ...] else []
    fits = isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts)
    if kind in (int, float, bool):
        fits = isinstance(value, int | float)
    if value is not None and (not fits or sum(map(len, texts)) > MAX_CAPTION_TEXT):
        raise ConfigError(f"`{name}` cannot be {str(value)[:100]}.")


def _carried(content: DraftContent, preset: str) -> dict:
    """The settings that hold for another preset too: all of them where it is the same one."""
    new = load_preset(preset)
    if preset == content.preset:
        return content.settings
    kept = list(KEPT_SETTINGS)
    if new.settings["base_model"] == load_preset(content.preset).settings["base_model"]:
        kept += ["base_model", "revision"]  # a folder that holds it, or another repository
    return {name: value for name, value in content.settings.items() if name in kept}


def check_keys(content: DraftContent, keys: Iterable[str]) -> None:
    """Raises `DraftError` for keys that no picture has."""
    if set(keys) - {item.key for item in content.items}:
        raise DraftError("This picture is no longer in the draft. Reload the page.")


# --- check and use


def draft_config(draft: Draft) -> TrainConfig:
    """The settings of the run that this draft would start; `ConfigError` for what cannot work."""
    return fill_prompts(make_config({**load_preset(draft.preset).settings, **draft.settings}))


def judge_draft(
    draft: Draft, *, captions: bool = True
) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """What `check_draft` and `note_repairs` find, at once; without `captions`, not which are empty."""
    findings = [
        each for each in _findings(draft)[1] if captions or not (isinstance(each, Problem) and each.caption)
    ]
    return _by_key(draft, Problem, findings), _by_key(draft, Note, findings)


def check_draft(draft: Draft) -> dict[str, tuple[str, ...]]:
    """What must be put right before a start, by picture key; "" is the whole set."""
    return judge_draft(draft)[0]


def note_repairs(draft: Draft) -> dict[str, tuple[str, ...]]:
    """What was repaired of pictures, and what becomes of them, by picture key; "" is the whole set."""
    return _by_key(draft, Note, _findings(draft)[1])


def draft_dataset(draft: Draft) -> Dataset:
    """The draft's pictures and captions for `runs.create_run`, or PicturesError with every problem."""
    examples, findings = _findings(draft)
    if problems := [finding for finding in findings if isinstance(finding, Problem)]:
        raise PicturesError(problems)
    notes = tuple(finding for finding in findings if isinstance(finding, Note))
    return Dataset(tuple(examples), notes, clean=True)


def _findings(draft: Draft) -> tuple[list[Example], list[Problem | Note]]:
    """Examples of the pictures that have captions, and what there is to say; pictures go by their names."""
    examples, findings, facts = [], [], []
    for item in draft.items:
        name = item.name
        try:
            caption = put_trigger_word(item.caption, draft.trigger_word.strip() or "[trigger]")
            captions = clean_captions(caption.splitlines(), name)
            sources = tuple(draft.pictures / f"{source.key}.png" for source in item.sources)
            examples.append(Example(draft.pictures / f"{item.key}.png", captions, sources, item.focus))
        except ValueError as error:
            findings.append(Problem(name, str(error), caption=not item.caption.strip()))
        facts.append(PictureFacts(name, item.size, item.pixels, item.focus, item.fingerprint))
        findings += [Note(name, f"{name} {remark}") for remark in item.remarks]
        for source in item.sources:
            remarks = [*source.remarks, *remarks_on(source.size)]
            findings += [Note(name, f"{source.name} {remark}") for remark in remarks]
    config = _usable_config(draft)
    findings += check_set(facts, config.minimum_side)
    findings += note_enlarged(facts, config.resolution)
    findings += note_many(len(facts), config.steps, config.batch_size)
    findings += _check_sources(draft)
    if not draft.trigger_word.strip() and any(PLACEHOLDER.search(item.caption) for item in draft.items):
        findings.append(Problem("", NO_TRIGGER_WORD))
    return examples, check_count(len(facts), "this draft") + findings


def _check_sources(draft: Draft) -> Iterable[Problem]:
    if draft.sources and draft.kind != EDIT:
        yield Problem(
            "",
            "There are source pictures, which only an edit starts from. Say that what is new is an edit, or"
            " remove them.",
        )
    else:
        counts = [(item.name, len(item.sources)) for item in draft.items]
        yield from check_sources(counts, needed=draft.kind == EDIT)


def _usable_config(draft: Draft) -> TrainConfig:
    try:
        return draft_config(draft)
    except ConfigError:  # reported where the settings are; the pictures are judged by the usual ones
        return TrainConfig()


def _by_key(
    draft: Draft, kind: type[Problem] | type[Note], findings: Iterable[Problem | Note]
) -> dict[str, tuple[str, ...]]:
    keys = {item.name: item.key for item in draft.items}
    found: dict[str, tuple[str, ...]] = {}
    for finding in findings:
        if isinstance(finding, kind):
            key = keys.get(finding.picture, "")
            found[key] = (*found.get(key, ()), finding.message)
    return found
