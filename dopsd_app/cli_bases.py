"""The commands about base models: fetching one, and checking it on this computer."""

import argparse
from pathlib import Path

from tqdm import tqdm

from dopsd_app.config import TrainConfig, make_config, parse_setting, presets_for
from dopsd_app.errors import KnownFailure
from dopsd_app.jobs.base_jobs import ask_for_download
from dopsd_app.jobs.follow import hint
from dopsd_app.models.base_download import needs_fetching
from dopsd_app.models.base_report import Finding
from dopsd_app.models.catalog import CATALOG, find_base_model, find_repository, read_name
from dopsd_app.progress import PhaseProgress
from dopsd_app.terminal import card, family_of, fetch


def add_download(command: argparse.ArgumentParser) -> None:
    """The arguments of `download`."""
    names = ", ".join(name for name, facts in CATALOG.items() if facts.repository)
    help_text = f"{names}; a repository (owner/name); or a folder, for the teacher's eyes"
    command.add_argument("base_model", help=help_text)
    _add_base(command)
    command.add_argument("--detach", action="store_true", help="return at once; fetching goes on")


def add_check_base(command: argparse.ArgumentParser) -> None:
    """The arguments of `check-base`."""
    command.add_argument("base_model", help="its name, a repository (owner/name), or a folder")
    _add_base(command)
    command.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="settings of the training step, as of `train`; default: those of the base model's first preset",
    )


def _add_base(command: argparse.ArgumentParser) -> None:
    command.add_argument("--revision", default="", help="a branch, a tag or a commit; default: the newest")
    command.add_argument(
        "--teacher-context",
        default="auto",
        metavar="CONTEXT",
        help="what its teacher is to see a picture with; default: the base model's own",
    )


def download(options: argparse.Namespace) -> int:
    """Fetches a base model, and checks it where it can be computed here."""
    name, revision = read_name(options.base_model), options.revision
    if name in CATALOG and not find_repository(name):
        raise KnownFailure(f"{name} comes with the program: there is nothing to fetch.")
    config = _base_config(name, options)
    if options.detach:
        ask_for_download(options.runs, config)
        print(f"{name} is being fetched. See how far it is: the same command without --detach.")
        return 0
    was_here = not needs_fetching(name, revision, config.teacher_context)
    fetch(name, revision, config.teacher_context)
    place = find_base_model(name, revision, config.teacher_context)
    eyes = f"\nThe teacher's eyes: {place.vision_tower}" if place.vision_tower else ""
    print(f"{name} is here: {place.folder}{eyes}")
    if was_here:
        return 0
    from dopsd_app.planning.plan import check_device  # brings Pillow

    try:
        check_device(config)
        return _check(config, options.runs)
    except KnownFailure as error:  # no card for it, or another job has that
        print(f"It was not checked here. {error}\nLater: {hint('check-base')} {name}")
        return 0


def check_base(options: argparse.Namespace) -> int:
    """Checks a base model, which is fetched first where it is not here."""
    from dopsd_app.planning.plan import check_device  # brings Pillow

    name = read_name(options.base_model)
    config = _base_config(name, options, *options.set)
    fetch(name, options.revision, config.teacher_context)
    check_device(config)
    return _check(config, options.runs)


def _base_config(name: str, options: argparse.Namespace, *changes: str) -> TrainConfig:
    """The configuration that a base model's first preset makes, with these changes."""
    preset = next(iter(presets_for(family_of(name, options.revision))), None)
    settings = dict(preset.settings) if preset else {}
    settings |= {"base_model": name, "revision": options.revision}
    if options.teacher_context != "auto":
        settings["teacher_context"] = options.teacher_context
    return make_config(settings | dict(parse_setting(change) for change in changes))


def _check(config: TrainConfig, runs_dir: Path) -> int:
    """Checks a base model, which is here, and tells what is found as it is found."""
    with card(runs_dir), tqdm(disable=None, leave=False, unit="look") as bar:
        from dopsd_app.check_base import check

        looks = check(config, runs_dir)
        while True:
            try:
                event = next(looks)
            except StopIteration as ended:
                report, folder = ended.value
                break
            if isinstance(event, Finding):
                bar.write(f"[{'passed' if event.passed else 'FAILED'}] {event.name}: {event.sentence}")
            elif isinstance(event, PhaseProgress):
                bar.set_description(event.phase, refresh=False)
                bar.total, bar.n = event.total, event.done
                bar.refresh()
    print(f"The report, as you can send it, and the pictures: {folder}")
    return 0 if report.passed else 1
