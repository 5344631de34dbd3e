"""What the check of a base model found on this computer, kept until one of the model's files changes."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from dopsd_app.errors import KnownFailure
from dopsd_app.files import read_value, replace_file
from dopsd_app.gpus import list_gpus
from dopsd_app.models.architecture import BaseModelError
from dopsd_app.models.catalog import (
    BaseModelPaths,
    catalog_name,
    find_base_model,
    find_facts,
    find_repository,
    full_name,
)
from dopsd_app.models.pipeline_folder import ELSEWHERE, read_elsewhere
from dopsd_app.models.repository import assets_folder

SCHEMA = 1
REPORT, TEXT = "report.json", "report.txt"  # the latter for a person, to be sent
PICTURES = ("picture.webp", "student.webp", "teacher.webp")  # what the teacher saw, and what was drawn


@dataclass(frozen=True)
class Finding:
    """One thing that a check looked at."""

    name: str
    passed: bool
    sentence: str  # for the person: what was found, and where it is wrong what to do
    seconds: float


@dataclass(frozen=True)
class BaseReport:
    """A whole check; nothing in it tells who the person is or where their files lie."""

    base_model: str  # by its name in the catalog; else only what kind it is
    commit: str  # of a repository of the catalog
    teacher_context: str
    findings: tuple[Finding, ...]  # up to the first that did not pass
    machine: dict[str, str]  # versions and card
    settings: dict[str, str]  # of the training step
    # Of one training step: what was planned, and what was measured; 0 where it did not come to that.
    work: float = 0.0  # operations, by which the time of other settings is reckoned
    slowness: float = 1.0  # times the seconds of a computer that does nothing else, when it was measured
    planned_seconds: float = 0.0
    seconds: float = 0.0
    planned_memory: int = 0  # bytes at the most on the device that trains, without the program itself
    memory: int = 0
    schema: int = SCHEMA

    @property
    def passed(self) -> bool:
        return all(finding.passed for finding in self.findings)

    @property
    def problem(self) -> str:
        """Why the base model is not trained on; empty where all is well."""
        return next((finding.sentence for finding in self.findings if not finding.passed), "")

    @property
    def text(self) -> str:
        """The report as lines that a person can send."""
        found = [
            f"[{'passed' if finding.passed else 'FAILED'}] {finding.name}, {finding.seconds:.1f} s:"
            f" {finding.sentence}"
            for finding in self.findings
        ]
        commit = f" at {self.commit}" if self.commit else ""
        measured = f"Planned: {self.planned_seconds:.3g} s a step"
        if self.seconds:
            measured += f"; measured: {self.seconds:.3g} s"
        if self.memory:
            planned, taken = self.planned_memory / 2**30, self.memory / 2**30
            measured += f". Memory planned: {planned:.2f} GiB; measured: {taken:.2f} GiB"
        lists = (
            ", ".join(f"{name} {value}" for name, value in x.items()) for x in (self.machine, self.settings)
        )
        head = f"Check of {self.base_model}{commit}, teacher {self.teacher_context}"
        return "\n".join([head, *found, measured, *lists])


def describe_base(name: str, commit: str) -> tuple[str, str]:
    """How a report names a base model and its commit: only the catalog's tell nothing of the person."""
    if known := catalog_name(name):
        return known, commit
    return ("another repository" if find_repository(name) else "a folder"), ""


def fingerprint(place: BaseModelPaths) -> list:
    """Changes with the base model's files, without reading gigabytes: names, sizes and times of change."""
    eyes = place.vision_tower.iterdir() if place.vision_tower else ()
    return fingerprint_files({*place.folder.glob("*/*"), *eyes})


def fingerprint_files(own: Iterable[Path]) -> list:
    """Changes with these files, and with those elsewhere that one of them names."""
    own = set(own)
    elsewhere = {file for path in own if path.name == ELSEWHERE for file in read_elsewhere(path.parent)}
    files = [path for path in sorted(own | elsewhere) if path.is_file()]
    return [
        (f"{path.parent.name}/{path.name}", path.stat().st_size, path.stat().st_mtime_ns) for path in files
    ]


def checks_folder() -> Path:
    """Where what the checks found is kept: a folder of a name in hexadecimal digits for each."""
    return assets_folder("base_checks", "")


def report_folder(name: str, place: BaseModelPaths, context: str) -> Path:
    """Where the report on a base model as it lies here is kept, with its pictures.

    `context` is one of its teacher contexts.
    """
    card = [gpu.name for gpu in list_gpus()[:1]]  # with another one, what was found does not hold
    identity = [full_name(name), place.commit, context, card, fingerprint(place)]
    return checks_folder() / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]


def save_report(report: BaseReport, folder: Path) -> None:
    """Keeps a report; it is the last file of a check to appear."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / TEXT, report.text + "\n")
    replace_file(folder / REPORT, json.dumps(asdict(report), indent=2))


def find_report(name: str, revision: str, context: str) -> tuple[BaseReport, Path] | None:
    """The last report on a base model as it lies here, and its folder; None for one that was not checked.

    `context` is a teacher context, or "auto".
    """
    try:
        context = find_facts(name, revision).architecture.choose_context(context)
        folder = report_folder(name, find_base_model(name, revision, context), context)
        report = read_value(BaseReport, (folder / REPORT).read_bytes())
    except (OSError, ValueError, KnownFailure):  # not here, never checked, or checked by another version
        return None
    return (report, folder) if report.schema == SCHEMA else None


def find_measured(name: str, revision: str, context: str, on_card: bool) -> BaseReport | None:
    """The report whose training step was measured where a run would be; None without one that passed."""
    found = find_report(name, revision, context)
    if found and found[0].passed and found[0].seconds and (found[0].memory > 0) == on_card:
        return found[0]
    return None


def refuse_failed(name: str, revision: str, context: str) -> None:
    """Raises `BaseModelError` for a base model whose check did not pass here."""
    if (found := find_report(name, revision, context)) and not found[0].passed:
        raise BaseModelError(
            f"This base model did not pass its check on this computer, and is not trained on."
            f" {found[0].problem}"
        )
