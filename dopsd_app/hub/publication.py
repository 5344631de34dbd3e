"""What is to be published of a run, and how: one value for the page, the command line and "when finished"."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dopsd_app.checks.health_rules import best_step
from dopsd_app.config import TrainConfig
from dopsd_app.errors import KnownFailure
from dopsd_app.hub_errors import HubError
from dopsd_app.jobs.events import HealthMeasured, measured_in, read_events
from dopsd_app.jobs.runs import Run, complete_checkpoints
from dopsd_app.models.catalog import find_facts, is_known

BEST = "best"


@dataclass(frozen=True)
class Publication:
    """What a person asked for; the pictures of the card are those that were chosen for the run.

    Raises `KnownFailure`, also for what a damaged file held.
    """

    name: str  # on the Hub: a name, or owner/name
    private: bool = True
    with_captions: bool = False  # on the card
    # A step, BEST for the one in best health, None for the finished LoRA.
    checkpoint: int | Literal["best"] | None = None
    pause: bool = False  # afterwards the Space that we run on, so that it costs nothing

    def __post_init__(self):
        if not isinstance(self.name, str):
            raise KnownFailure(f"The name on the Hub must be a text, got {self.name!r}.")
        check_name(self.name)
        for key in ("private", "with_captions", "pause"):
            if not isinstance(value := getattr(self, key), bool):
                raise KnownFailure(f"`{key}` must be true or false, got {value!r}.")
        step = self.checkpoint
        if step not in (None, BEST) and (type(step) is not int or step < 1):
            raise KnownFailure(f"`checkpoint` must be a step from 1, `{BEST}` or nothing, got {step!r}.")

    @classmethod
    def from_fields(cls, fields: object) -> "Publication":
        """The value that `dataclasses.asdict` made these fields of; `KnownFailure` where they are damaged."""
        if not isinstance(fields, dict):
            raise KnownFailure("What is to be published is not written as its settings.")
        try:
            return cls(**fields)
        except TypeError:
            names = ", ".join(map(str, fields)) or "nothing"
            raise KnownFailure(f"What is to be published has other settings than known: {names}.") from None


@dataclass(frozen=True)
class Published:
    """The last word of a push: the LoRA is on the Hub."""

    link: str


def checkpoint_to_publish(run: Run, publication: Publication) -> int | None:
    """The step of the checkpoint that is meant; None for the finished LoRA."""
    if publication.checkpoint == BEST:
        return healthier_checkpoint(run, measured_in(read_events(run.events_file)))
    return publication.checkpoint


def healthier_checkpoint(run: Run, measured: Sequence[HealthMeasured]) -> int | None:
    """The last checkpoint in good health where that is an earlier one than the newest; else None."""
    steps = [int(folder.name) for folder in complete_checkpoints(run)]
    best = best_step(measured, steps)
    return best if best not in (None, *steps[-1:]) else None


def why_no_health(run: Run) -> str:
    """Why nobody measures the health of a run's LoRA, so that no step is in best health; "" where it is."""
    config = run.config
    if measured_in(read_events(run.events_file)):
        return ""
    if not config.preview_every:
        return "it is measured at previews, and this run makes none"
    name, revision = config.base_model, config.revision
    if is_known(name, revision) and find_facts(name, revision).scoring(config) == "none":
        return "what measures it are the teacher's eyes, and this run's teacher has none"
    return ""


def check_health(run: Run, publication: Publication) -> None:
    """Raises `KnownFailure` where the step in best health is asked for, and there can be none."""
    if publication.checkpoint == BEST and (why := why_no_health(run)):
        raise KnownFailure(
            f"No step of {run.id} is in best health: {why}. Take the finished LoRA, or a step of your choice."
        )


# --- names


def check_name(name: str) -> None:
    """Raises `HubError` unless this can be a model's name on the Hub: `name`, or `owner/name`."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id  # not for commands that only look

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise HubError(
            f"`{name[:100]}` cannot be a name on the Hub: write a name, or owner/name, each of 1 to 96"
            " letters (a to z), digits, dots, dashes and underscores; no dash or dot at either end, no two"
            " in a row, and no .git at the end."
        ) from None


def suggest_name(config: TrainConfig) -> str:
    """A name for the LoRA's repository, from what the person called it."""
    for text in (config.name, config.trigger_word, "my"):
        ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
        if name := re.sub("[^A-Za-z0-9]+", "-", ascii_text).strip("-")[:80].strip("-"):
            break
    return name if name.lower().endswith("lora") else f"{name}-lora"
