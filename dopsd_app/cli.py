"""The command line: reads what a person asks for, checks it, and calls the functions that the page calls too.

Only `preview` and `generate` import torch, and only when they have something to do.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tqdm import tqdm

from dopsd_app import __version__, cli_bases, cli_captions
from dopsd_app.checks.verdict import CHECKED, read_check
from dopsd_app.config import (
    DEFAULT_PRESET,
    EDIT,
    ConfigError,
    TrainConfig,
    list_presets,
    list_settings,
    load_preset,
    make_config,
    parse_setting,
    preset_for,
)
from dopsd_app.errors import KnownFailure
from dopsd_app.hub.access import find_token
from dopsd_app.hub.publication import BEST, Publication, check_health, suggest_name
from dopsd_app.hub.push_job import STOPPED, ask_for_push, cancel_push, wait_for_push
from dopsd_app.jobs import drawing
from dopsd_app.jobs.events import EventReader
from dopsd_app.jobs.follow import follow, hint
from dopsd_app.jobs.lora_file import find_lora
from dopsd_app.jobs.promise import keep_promise
from dopsd_app.jobs.queue import enqueue, send_command
from dopsd_app.jobs.run_notes import first_name, name_of, read_notes
from dopsd_app.jobs.runs import Run, create_run, default_runs_dir, find_run, list_runs, resume
from dopsd_app.jobs.status import Status
from dopsd_app.models.architecture import UNTAUGHT
from dopsd_app.models.base_download import needs_fetching
from dopsd_app.models.catalog import (
    check_base_model,
    check_resolution,
    check_sources,
    read_name,
)
from dopsd_app.planning.machine import read_machine
from dopsd_app.progress import words_for_time
from dopsd_app.terminal import card, drawn, family_of, fetch, start, trains

if TYPE_CHECKING:
    from dopsd_app.data.pictures import Dataset

T = TypeVar("T")
BESIDE = "A run is being trained: its process draws between two of its steps."

EPILOG = """examples:
  python -m dopsd_app preview --images photos/my-cat
      what the teacher sees in your pictures, before you train on them
  python -m dopsd_app download z-image-turbo
      what a run with it would fetch first, now
  python -m dopsd_app train --images photos/my-cat --trigger-word mycat --set steps=200 rank=8
      train with the default preset and two settings of your own
  python -m dopsd_app generate latest --prompt "mycat on a red sofa" --count 4 --base-too
      pictures from the newest run's LoRA, and the same without it
  python -m dopsd_app runs
  python -m dopsd_app resume latest
  python -m dopsd_app resume latest --steps 400
      go on from the last checkpoint; or 400 steps more, when the run has finished

A run is named by "latest", an id as `runs` lists it, or the beginning of one. Runs are kept in the folder
`runs`, or where --runs or the environment variable DOPSD_RUNS says. Exit codes: 0 done or stopped, 1 failed,
2 refused."""


def main(arguments: list[str] | None = None) -> int:
    """Does what the arguments ask for; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return options.do(options)
    except KnownFailure as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:  # no right to write, no room, a file where a folder should be
        print(
            f"{error.filename}: {error.strerror}. Choose another folder, or repair this one.", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dopsd_app",
        description="Trains a LoRA from 4 to 200 pictures for an image model that draws in a few steps.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, do: Callable, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(do=do)
        command.add_argument(
            "--runs", type=Path, metavar="DIR", default=default_runs_dir(), help="folder that holds the runs"
        )
        return command

    train = add("train", _train, "Train a LoRA on a folder of pictures and follow it to the end.")
    _add_settings(train)
    train.add_argument("--name", help="becomes part of the run's folder name")
    train.add_argument(
        "--detach", action="store_true", help="return at once; the run goes on, or waits its turn"
    )
    train.add_argument(
        "--prepare-only",
        action="store_true",
        help="make the run's folder, for `accelerate launch -m dopsd_app.train FOLDER`",
    )
    _add_settings(add("plan", _plan, "Tell what a run would need, and how it fits, without starting it."))
    preview = add(
        "preview", _preview, "Show what the teacher sees, of up to 4 pictures, before any training."
    )
    _add_settings(preview)
    preview.add_argument(
        "--out", type=Path, metavar="FILE", default=Path("teacher-check.png"), help="default: %(default)s"
    )
    cli_captions.add_caption(
        add(
            "caption",
            cli_captions.caption,
            "Write captions for a folder of pictures, by a model that sees them.",
        )
    )
    _add_generate(add("generate", _generate, "Draw pictures with a run's LoRA."))
    cli_bases.add_download(
        add(
            "download",
            cli_bases.download,
            "Fetch a base model from the Hub into its cache (HF_HOME), as a run that needs it would.",
        )
    )
    cli_bases.add_check_base(
        add(
            "check-base",
            cli_bases.check_base,
            "Prove a base model on this computer: its files, its steps, one picture, one training step.",
        )
    )
    add("runs", _runs, "List all runs, newest first.")
    add("stop", _stop, "Ask a run to save a checkpoint and stop, or take it out of the queue.").add_argument(
        "run"
    )
    further = add("resume", _resume, "Go on with a run from its last checkpoint, and follow it.")
    further.add_argument("run")
    further.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="N more steps than that checkpoint has, also for a finished run; default: what was left to do",
    )
    to_hub = add(
        "publish",
        _publish,
        "Push a run's LoRA with a model card to the Hub, with the token of `hf auth login`.",
    )
    to_hub.add_argument("run")
    to_hub.add_argument(
        "--name", metavar="[OWNER/]NAME", help="on the Hub; default: made from the run's name"
    )
    to_hub.add_argument("--public", action="store_true", help="for everybody to see; without it, private")
    to_hub.add_argument(
        "--checkpoint",
        type=_step_or_best,
        metavar="STEP",
        help=f"or `{BEST}`: the last one in good health, where that is measured; default: the finished LoRA",
    )
    add("presets", _presets, "List the presets and what they set.")
    return parser


def _add_settings(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--images",
        type=Path,
        required=True,
        metavar="DIR",
        help="4 to 200 pictures with a .txt of the same name beside each, one caption per line;"
        " cat_source.png, if there, is what cat.png is made from, for a base model that edits;"
        " prompts.txt, if there, holds the prompts of the previews",
    )
    command.add_argument(
        "--preset", help=f"see `presets`; default: {DEFAULT_PRESET}, or what fits the base_model of --set"
    )
    command.add_argument("--trigger-word", metavar="WORD", help="the word that stands for the new concept")
    command.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="any of the settings below; wins over the preset",
    )
    command.epilog = f"settings with their defaults:\n{list_settings()}"
    command.formatter_class = argparse.RawDescriptionHelpFormatter


def _add_generate(command: argparse.ArgumentParser) -> None:
    command.add_argument("run")
    command.add_argument("--prompt", action="append", required=True, help="can be given more than once")
    command.add_argument(
        "--source",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="pictures to start from, for a LoRA whose base model edits",
    )
    command.add_argument("--seed", type=int, default=0, help="of the first picture; default: %(default)s")
    command.add_argument("--count", type=int, default=1, metavar="N", help="pictures for each prompt")
    _add_checkpoint(command)
    command.add_argument("--strength", type=float, default=1.0, help="of the LoRA; default: %(default)s")
    command.add_argument("--base-too", action="store_true", help="the same pictures without the LoRA, too")
    command.add_argument("--out", type=Path, metavar="DIR", help="default: `generated` in the run's folder")


def _add_checkpoint(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--checkpoint", type=int, metavar="STEP", help="default: the finished LoRA, or the newest checkpoint"
    )


def _step_or_best(text: str) -> int | str:
    return text if text == BEST else int(text)


# --- commands


def _train(options: argparse.Namespace) -> int:
    from dopsd_app.planning.plan import check_base, make_plan  # brings Pillow

    config, dataset = _read_settings(options)
    check_base(config)
    counts = {"pictures": len(dataset.examples), "sources": dataset.sources}
    plan = make_plan(config, **counts, runs_dir=options.runs, machine=read_machine())
    if plan.problems:
        raise KnownFailure("\n".join(plan.problems))
    print(*plan.warnings, sep="\n", end="\n" if plan.warnings else "")
    print(f"It will take {words_for_time(plan.seconds)} ({plan.source}).")
    run = create_run(options.runs, config, dataset)
    assert plan.promise is not None  # it is left out only where there are problems
    keep_promise(run.path, plan.promise)
    if options.prepare_only:
        print(run.path)
        return 0
    enqueue(run)
    start(run.runs_dir)
    print(f"Run {run.id}")
    if options.detach:
        waits = run.status.state == "queued"
        print("It waits in the queue." if waits else "It is at work.", f"See it: {hint('runs')}")
        return 0
    return follow(run, EventReader(run.events_file))


def _plan(options: argparse.Namespace) -> int:
    from dopsd_app.planning.plan import make_plan  # brings Pillow

    config, dataset = _read_settings(options)
    counts = {"pictures": len(dataset.examples), "sources": dataset.sources}
    plan = make_plan(config, **counts, runs_dir=options.runs, machine=read_machine())
    print(plan.device)
    if plan.fitted:
        print(
            f"Memory: up to {_gib(plan.memory)} of {_gib(plan.fitted.budget.device)}. {plan.fitted_in_words}"
        )
        memory = plan.fitted.memory
        phases = {"encoding": memory.encoding, "training": memory.training, "drawing": memory.drawing}
        print(*(f"  {phase:11}{_gib(taken)}" for phase, taken in phases.items()), sep="\n")
        if memory.computer:
            print(f"  of the computer's own: {_gib(memory.computer)}")
    if plan.promise:
        print(f"Time: {words_for_time(plan.seconds)}, {plan.seconds_per_step:.3g} s a step ({plan.source}).")
    if plan.disk:
        print(f"Disk: up to {plan.disk / 1e9:.1f} GB.")
    print(*plan.warnings, sep="\n", end="\n" if plan.warnings else "")
    if plan.problems:
        raise KnownFailure("\n".join(plan.problems))
    return 0


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GB"


def _resume(options: argparse.Namespace) -> int:
    run = find_run(options.runs, options.run)
    reader = EventReader(run.events_file)
    reader.poll()  # what came before is not shown again
    checkpoint = resume(run, options.steps)
    start(run.runs_dir)
    where = f"step {int(checkpoint.name)}" if checkpoint else "the beginning"
    print(f"Run {run.id} goes on from {where}" + (f" to {run.config.steps}" if options.steps else ""))
    return follow(run, reader)


def _preview(options: argparse.Namespace) -> int:
    if options.out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise KnownFailure(f"`--out` must be a .png, .jpg or .webp file, got {options.out}.")
    from dopsd_app.planning.plan import check_base  # brings Pillow

    config, dataset = _read_settings(options)
    check_base(config)
    fetch(config.base_model, config.revision, config.teacher_context)
    with tempfile.TemporaryDirectory() as folder:
        look = _look_beside if trains(options.runs) else _look_here
        checked = look(config, dataset, Path(folder), options.runs)
        from dopsd_app.checks.teacher_check import save_sheet

        save_sheet(checked, options.out)
        check = read_check(checked)
        assert check is not None  # it was just written
    source = "what it is made from, " if dataset.sources else ""
    print(f"{options.out}: each row is {source}your picture, what the base draws from the caption, what the")
    print("teacher draws from caption and picture. Training can teach what the last column shows.")
    print(f"Score {check.score:.2f}. {check.sentence}")
    return 0


def _look_here(config: TrainConfig, dataset: "Dataset", folder: Path, runs_dir: Path) -> Path:
    """Checks what the teacher sees, by this process; returns the folder of the check."""
    with card(runs_dir):
        from dopsd_app.checks.teacher_check import teacher_check
        from dopsd_app.models.loaded_model import LoadedModel
        from dopsd_app.planning.plan import plan_drawing

        model = LoadedModel(config, plan_drawing(config))
        with tqdm(disable=None, unit="picture") as bar:
            for progress in teacher_check(model, config, dataset.examples, folder):
                bar.set_description(progress.phase, refresh=False)
                bar.total, bar.n = progress.total, progress.done
                bar.refresh()
    return folder


def _look_beside(config: TrainConfig, dataset: "Dataset", folder: Path, runs_dir: Path) -> Path:
    """The same by the process of a run that is being trained."""
    from dopsd_app.data.pictures import copy_examples

    print(BESIDE)
    pictures = folder / "pictures"
    copy_examples(replace(dataset, examples=dataset.examples[:CHECKED]), pictures)
    return drawn(runs_dir, drawing.CheckRequest(config, pictures)).path


def _generate(options: argparse.Namespace) -> int:
    run = find_run(options.runs, options.run)
    out = options.out or run.path / "generated"
    if options.count < 1:
        raise KnownFailure(f"`--count` must be at least 1, got {options.count}.")
    drawing.check_sources(run, len(options.source))
    seeds = list(range(options.seed, options.seed + options.count))
    if needs_fetching(run.config.base_model, run.config.revision, UNTAUGHT):
        find_lora(run, options.checkpoint)  # what is not there raises before gigabytes are fetched
        fetch(run.config.base_model, run.config.revision, UNTAUGHT)
    if trains(options.runs):
        _draw_beside(run, seeds, out, options)
        return 0
    with card(options.runs):
        from dopsd_app.generate import generate

        pictures = generate(
            run,
            options.prompt,
            seeds,
            out=out,
            strength=options.strength,
            checkpoint=options.checkpoint,
            base_too=options.base_too,
            sources=options.source,
        )
        total = len(options.prompt) * options.count * (1 + options.base_too)
        for file in tqdm(pictures, total=total, desc="drawing", unit="picture", disable=None):
            tqdm.write(str(file))
    return 0


def _draw_beside(run: Run, seeds: list[int], out: Path, options: argparse.Namespace) -> None:
    """The same by the process of a run that is being trained, between two of its steps."""
    print(BESIDE)
    column = drawing.Column(options.checkpoint, options.strength)
    # The base alone, as which a strength of 0 counts, is nothing that is asked for.
    columns = (drawing.BASE, column) if options.base_too or not options.strength else (column,)
    kept = [(len(columns) - 1, drawing.file_variant(run, column)), (0, "_base")][: 1 + options.base_too]
    out.mkdir(parents=True, exist_ok=True)
    for request, first in _in_pieces(run, options.prompt, seeds, columns):
        made = drawn(options.runs, request, options.source)
        for row, shown in enumerate(request.rows):
            stem = drawing.file_stem(first + row // len(request.seeds), shown, options.source)
            for place, suffix in kept:
                print(shutil.copyfile(made.cell(row, place), out / f"{stem}{suffix}.png"))


def _in_pieces(
    run: Run, prompts: Sequence[str], seeds: Sequence[int], columns: tuple[drawing.Column, ...]
) -> Iterator[tuple[drawing.PictureRequest, int]]:
    """Requests as large as one may be: together every prompt with every seed; the first prompt's number."""
    for first in range(0, len(prompts), drawing.MAX_PROMPTS):
        for at in range(0, len(seeds), drawing.MAX_SEEDS):
            some = tuple(prompts[first : first + drawing.MAX_PROMPTS])
            request = drawing.PictureRequest(run.id, some, tuple(seeds[at : at + drawing.MAX_SEEDS]), columns)
            yield request, first + 1


def _runs(options: argparse.Namespace) -> int:
    rows, remarks = [("run", "state", "step", "base model", "when")], [[""]]
    for run in list_runs(options.runs):
        status = run.status
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(status.updated))
        try:
            base_model = run.config.base_model
        except ConfigError:
            base_model = "?"  # of a version with other settings
        rows.append((run.id, status.state, f"{status.step}/{status.steps}", base_model, when))
        named = [name] if (name := name_of(run)) != first_name(run) else []
        remarks.append([*named, *read_notes(run).splitlines(), status.reason])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row, of_run in zip(rows, remarks, strict=True) if rows[1:] else []:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
        print(*(f"    {remark}\n" for remark in of_run if remark), sep="", end="")
    if not rows[1:]:
        print(f"There are no runs in {options.runs}.")
    return 0


def _stop(options: argparse.Namespace) -> int:
    run = find_run(options.runs, options.run)
    before = run.status.state
    send_command(run, "stop")
    what = "saves a checkpoint and stops" if before in ("training", "beside") else "stops"
    print(f"{run.id} {'is out of the queue' if before == 'queued' else what}.")
    return 0


def _publish(options: argparse.Namespace) -> int:
    run = find_run(options.runs, options.run)
    name = options.name or suggest_name(run.config)
    publication = Publication(name, private=not options.public, checkpoint=options.checkpoint)
    check_health(run, publication)
    token = find_token("", None)
    job = ask_for_push(run, publication, token)
    try:
        with tqdm(unit="step", desc="publishing", disable=None, leave=False) as bar:
            print(wait_for_push(job, lambda status: _show_steps(bar, status)))
    except KeyboardInterrupt:
        cancel_push(run)
        print(STOPPED, file=sys.stderr)
        raise
    return 0


def _show_steps(bar: tqdm, status: Status) -> None:
    bar.total, bar.n = status.total or None, status.done
    bar.refresh()


def _presets(options: argparse.Namespace) -> int:
    for preset in list_presets():
        settings = ", ".join(f"{key}={value}" for key, value in preset.settings.items())
        print(f"{preset.name}: {preset.label}\n  {preset.description}\n  {settings}")
    return 0


# --- what the commands share


def _read_settings(options: argparse.Namespace) -> tuple[TrainConfig, "Dataset"]:
    """Configuration and pictures as asked for; a `KnownFailure` with everything that is wrong with either."""
    from dopsd_app.data.pictures import fill_placeholders, fill_prompts, read_examples
    from dopsd_app.data.source_pictures import has_sources

    problems: list[str] = []

    def attempt(function: Callable[..., T], *arguments, **keywords) -> T | None:
        try:
            return function(*arguments, **keywords)
        except KnownFailure as error:
            problems.append(str(error))
            return None

    changes = dict(filter(None, [attempt(parse_setting, text) for text in options.set]))
    if "base_model" in changes:
        changes["base_model"] = read_name(changes["base_model"])
    # A preset's settings belong to its base model: one without a preset gets the paper's, the defaults.
    base_model = changes.get("base_model", load_preset(DEFAULT_PRESET).settings["base_model"])
    wanted = attempt(family_of, base_model, changes.get("revision", ""))
    name = options.preset or preset_for(wanted or base_model, EDIT if has_sources(options.images) else "")
    preset = attempt(load_preset, name) if name else None
    settings = dict(preset.settings) if preset else {}
    if prompts := attempt(_read_prompts, options.images / "prompts.txt"):
        settings["preview_prompts"] = prompts
    settings |= changes
    given = {"name": vars(options).get("name"), "trigger_word": options.trigger_word}
    settings |= {key: value for key, value in given.items() if value is not None}
    config = attempt(make_config, settings) if preset or not name else None
    if config:
        attempt(check_base_model, config.base_model)
        attempt(check_resolution, config.base_model, config.resolution)
    sides = {"minimum_side": config.minimum_side, "resolution": config.resolution} if config else {}
    dataset = attempt(read_examples, options.images, **({"minimum_side": 1} | sides))
    if dataset and config:
        dataset = attempt(fill_placeholders, dataset, config.trigger_word)
    if dataset and config:
        attempt(check_sources, config.base_model, config.revision, dataset.sources)
    if problems or config is None or dataset is None:  # without one, there is a problem that says why
        raise KnownFailure("\n".join(problems))
    for note in dataset.notes:
        print(note.message)
    captions = [caption for example in dataset.examples for caption in example.captions]
    if config.trigger_word and not any(config.trigger_word in caption for caption in captions):
        print(
            f"No caption holds the trigger word `{config.trigger_word}`: a prompt with it draws nothing new."
        )
    return fill_prompts(config), dataset


def _read_prompts(path: Path) -> tuple[str, ...]:
    """Its lines that are not empty; none where there is no such file."""
    if not path.is_file():
        return ()
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise KnownFailure(f"{path.name} is not UTF-8 text. Save it again as UTF-8.") from error
    return tuple(line.strip() for line in lines if line.strip())
