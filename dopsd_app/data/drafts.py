"""What a person prepares before a start: pictures, captions and settings, in a folder.

A draft is a folder; its draft.json holds everything but the pictures.
"""

import json
import os
import re
import secrets
import shutil
import typing
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dopsd_app.config import DEFAULT_PRESET, ConfigError, TrainConfig, load_preset, make_config
from dopsd_app.data.caption_file import MAX_CAPTION, clean_captions
from dopsd_app.data.draft_file import DraftError, changing, draft_lock, read_state
from dopsd_app.data.picture_file import PicturesError
from dopsd_app.data.pictures import Dataset, Example, Note, PictureFacts, Problem, check_count, check_set
from dopsd_app.files import replace_file, retry

DRAFT_NAME = re.compile(r"\d{8}-\d{6}-[0-9a-f]{12}")  # as `new_draft` makes it
KINDS = ("subject", "style")
NEW = {"preset": DEFAULT_PRESET, "settings": {}, "kind": KINDS[0], "items": [], "waiting": {}}
MAX_CAPTION_TEXT = 10 * MAX_CAPTION  # characters in one caption box
KEPT_SETTINGS = ("name", "trigger_word", "preview_prompts", "device")  # they do not depend on the preset


@dataclass(frozen=True)
class Item:
    """One picture of a draft, as the page shows it."""

    key: str  # ours: names the picture in every call
    name: str  # the person's file name; no two of a draft are equal
    thumbnail: Path
    caption: str  # one caption per line, as typed
    problems: tuple[str, ...]
    notes: tuple[str, ...]  # what was repaired
    creature: bool  # whether the built-in base could learn it


@dataclass(frozen=True)
class Draft:
    """One draft: a folder; everything else is read from it."""

    path: Path  # absolute

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def items(self) -> tuple[Item, ...]:
        return _items(self)

    @property
    def kind(self) -> str:
        """ "subject" or "style"."""
        return read_state(self.path)["kind"]

    @property
    def preset(self) -> str:
        return read_state(self.path)["preset"]

    @property
    def settings(self) -> dict:
        """What differs from the preset: names of `TrainConfig` and their values, not checked yet."""
        return read_state(self.path)["settings"]

    @property
    def trigger_word(self) -> str:
        return self.settings.get("trigger_word", "")

    @property
    def waiting(self) -> tuple[str, ...]:
        """Names of caption files whose pictures have not come yet."""
        return tuple(name for name, _ in read_state(self.path)["waiting"].values())

    @property
    def pictures(self) -> Path:
        return self.path / "pictures"

    @property
    def thumbnails(self) -> Path:
        return self.path / "thumbnails"


# --- create, list, find, delete


def default_drafts_dir() -> Path:
    """Where drafts are kept: DOPSD_DRAFTS, or `drafts` in the current folder."""
    return Path(os.environ.get("DOPSD_DRAFTS") or "drafts").absolute()


def new_draft(drafts_dir: Path) -> Draft:
    """An empty draft with the settings of the default preset."""
    # The last part keeps others from guessing the folder's name.
    draft = Draft(drafts_dir.absolute() / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(6)}")
    draft.pictures.mkdir(parents=True)
    draft.thumbnails.mkdir()
    replace_file(draft.path / "draft.json", json.dumps(NEW))
    return draft


def is_new(draft: Draft) -> bool:
    """Whether nothing was put into the draft or changed in it."""
    return read_state(draft.path) == NEW


def list_drafts(drafts_dir: Path) -> list[Draft]:
    """All drafts, the one that was changed last first."""
    changed = {}
    for file in drafts_dir.absolute().glob("[!.]*/draft.json"):
        draft = Draft(file.parent)
        with suppress(DraftError, FileNotFoundError):  # damaged by hand, or just being deleted
            read_state(draft.path)
            changed[draft] = file.stat().st_mtime_ns
    return sorted(changed, key=changed.get, reverse=True)


def current_draft(drafts_dir: Path) -> Draft:
    """The draft that was changed last; a new one where there is none."""
    drafts_dir.mkdir(parents=True, exist_ok=True)
    with draft_lock(drafts_dir):
        drafts = list_drafts(drafts_dir)
        return drafts[0] if drafts else new_draft(drafts_dir)


def find_draft(drafts_dir: Path, draft_id: str) -> Draft:
    """The draft of this id, which may come from anywhere."""
    draft = Draft(drafts_dir.absolute() / draft_id)
    if not DRAFT_NAME.fullmatch(draft_id) or not (draft.path / "draft.json").is_file():
        raise DraftError("This draft is no longer there. Begin a new one.")
    return draft


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


def set_caption(draft: Draft, key: str, text: str) -> None:
    """Keeps what the person typed beside a picture: one caption per line."""
    if len(text) > MAX_CAPTION_TEXT:
        raise DraftError(f"This caption has {len(text)} characters. Shorten it to {MAX_CAPTION} at most.")
    with changing(draft.path) as state:
        _item(state, key)["caption"] = text


def remove_picture(draft: Draft, key: str) -> None:
    """Takes a picture and its caption out of the draft."""
    with changing(draft.path) as state:
        state["items"].remove(_item(state, key))
    delete_files(draft, key)


def delete_files(draft: Draft, key: str) -> None:
    """Removes the files of a picture that is on no list; the key must be one of ours."""
    for file in (draft.pictures / f"{key}.png", draft.thumbnails / f"{key}.webp"):
        retry(lambda file=file: file.unlink(missing_ok=True))


def set_settings(draft: Draft, **changes) -> None:
    """Keeps settings by name, with "preset" and "kind" among them; None goes back to the preset's value.

    Values are checked by `draft_config`: a person may be in the middle of typing. Another preset drops what
    was changed of the last one, except `KEPT_SETTINGS`.
    """
    for name in changes.keys() - {"preset", "kind"}:
        _check_value(name, changes[name])
    with changing(draft.path) as state:
        kind = changes.pop("kind", state["kind"])
        if kind not in KINDS:
            raise ConfigError(f"`kind` must be one of {', '.join(KINDS)}, got {kind!r}.")
        preset = changes.pop("preset", state["preset"])
        settings = _carried(state, preset) | changes
        settings = {name: value for name, value in settings.items() if value is not None}
        state.update(kind=kind, preset=preset, settings=settings)


def _check_value(name: str, value: object) -> None:
    """Refuses what no reader of a draft could bear; whether a value makes sense is asked later."""
    kind = typing.get_type_hints(TrainConfig).get(name)
    if kind is None:
        raise ConfigError(f"There is no setting {name[:100]}.")
    texts = [value] if kind is str else value if kind == tuple[str, ...] else []
    fits = isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts)
    if kind in (int, float, bool):
        fits = isinstance(value, int | float)
    if value is not None and (not fits or sum(map(len, texts)) > MAX_CAPTION_TEXT):
        raise ConfigError(f"`{name}` cannot be {str(value)[:100]}.")


def _carried(state: dict, preset: str) -> dict:
    """The settings that hold for another preset too: all of them where it is the same one."""
    new = load_preset(preset)
    if preset == state["preset"]:
        return state["settings"]
    kept = list(KEPT_SETTINGS)
    if new.settings["base_model"] == load_preset(state["preset"]).settings["base_model"]:
        kept += ["base_model", "revision"]  # a folder that holds it, or another repository
    return {name: value for name, value in state["settings"].items() if name in kept}


def _item(state: dict, key: str) -> dict:
    for item in state["items"]:
        if item["key"] == key:
            return item
    raise DraftError("This picture is no longer in the draft. Reload the page.")


# --- check and use


def draft_config(draft: Draft) -> TrainConfig:
    """The settings of the run that this draft would start; `ConfigError` for what cannot work."""
    return _config(read_state(draft.path))


def _config(state: dict) -> TrainConfig:
    return make_config({**load_preset(state["preset"]).settings, **state["settings"]})


def check_draft(draft: Draft) -> dict[str, tuple[str, ...]]:
    """What must be put right before a start, by picture key; "" is the whole set."""
    state = read_state(draft.path)
    return _by_key(state, Problem, _findings(draft, state)[1])


def draft_dataset(draft: Draft) -> Dataset:
    """The draft's pictures and captions for `runs.create_run`, or PicturesError with every problem."""
    examples, findings = _findings(draft, read_state(draft.path))
    if problems := [finding for finding in findings if isinstance(finding, Problem)]:
        raise PicturesError(problems)
    notes = tuple(finding for finding in findings if isinstance(finding, Note))
    return Dataset(tuple(examples), notes, clean=True)


def _findings(draft: Draft, state: dict) -> tuple[list[Example], list[Problem | Note]]:
    """Examples of the pictures that have captions, and what there is to say; pictures go by their names."""
    examples, findings, facts = [], [], []
    for item in state["items"]:
        name = item["name"]
        try:
            captions = clean_captions(item["caption"].splitlines(), name)
            examples.append(Example(draft.pictures / f"{item['key']}.png", captions))
        except ValueError as error:
            findings.append(Problem(name, str(error)))
        facts.append(PictureFacts(name, tuple(item["size"]), item["pixels"]))
        findings += [Note(name, f"{name} {remark}") for remark in item["remarks"]]
    findings += check_set(facts, _minimum_side(state))
    return examples, check_count(len(facts), "this draft") + findings


def _minimum_side(state: dict) -> int:
    try:
        return _config(state).minimum_side
    except ConfigError:  # reported where the settings are; the pictures are judged by the usual limit
        return TrainConfig().minimum_side


def _by_key(
    state: dict, kind: type[Problem] | type[Note], findings: list[Problem | Note]
) -> dict[str, tuple[str, ...]]:
    keys = {item["name"]: item["key"] for item in state["items"]}
    found: dict[str, tuple[str, ...]] = {}
    for finding in findings:
        if isinstance(finding, kind):
            key = keys.get(finding.picture, "")
            found[key] = (*found.get(key, ()), finding.message)
    return found


def _items(draft: Draft) -> tuple[Item, ...]:
    state = read_state(draft.path)
    _, findings = _findings(draft, state)
    problems, notes = _by_key(state, Problem, findings), _by_key(state, Note, findings)
    return tuple(
        Item(
            item["key"],
            item["name"],
            draft.thumbnails / f"{item['key']}.webp",
            item["caption"],
            problems.get(item["key"], ()),
            notes.get(item["key"], ()),
            item.get("creature", True),  # drafts of earlier versions do not tell
        )
        for item in state["items"]
    )
