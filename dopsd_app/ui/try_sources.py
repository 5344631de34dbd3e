"""The pictures that a LoRA of edits starts from when it is tried: the run's own, or a person's."""

import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path

import gradio as gr

from dopsd_app.data.example import natural_order
from dopsd_app.data.picture_file import load_picture
from dopsd_app.errors import KnownFailure
from dopsd_app.jobs.drawing import Drawing, check_sources, read_drawing
from dopsd_app.jobs.runs import Run
from dopsd_app.models.catalog import find_facts, is_known
from dopsd_app.ui import words

# What stands for a choice: nothing, the number of one of the run's pictures, an upload, or a drawing.
NOTHING, OWN, UPLOAD, DRAWING = "", "own", "upload", "drawing"
FOLDER = "tried"  # in the run's folder: uploads
KEPT = 5  # uploads; older ones are swept away when a new one comes


def can_start(run: Run) -> bool:
    """Whether the run's base model starts from pictures, as far as is known."""
    config = run.config
    known = is_known(config.base_model, config.revision)
    return known and find_facts(config.base_model, config.revision).architecture.edits


def list_sources(run: Run, drawing: Drawing | None = None) -> list[tuple[str, str]]:
    """What can be chosen, as (label, value): first what the last `drawing` started from, then an upload."""
    found = [("As drawn last", f"{DRAWING}-{drawing.id}")] if drawing and drawing.sources else []
    found += [("Your upload", f"{UPLOAD}-{folder.name}") for folder in _uploads(run)[:1]]
    own = range(1, 1 + len(list(run.dataset.glob("*.txt"))) if run.sources else 1)
    found += [(f"Source of training picture {number}", f"{OWN}-{number}") for number in own]
    return found if run.sources else [("None", NOTHING), *found]


def find_sources(run: Run, choice: str) -> list[Path]:
    """The pictures that a choice stands for; `KnownFailure` for one that is gone, or never was."""
    if choice == NOTHING:
        return []
    name, _, value = choice.partition("-")
    if name == OWN and value.isdecimal():
        found = run.sources_of(int(value))
    elif name == UPLOAD:
        folder = next((folder for folder in _uploads(run) if folder.name == value), None)
        found = sorted(folder.glob("*.png")) if folder else []
    elif name == DRAWING:
        found = read_drawing(run.runs_dir, value).sources
    else:
        found = []
    if not found:
        raise KnownFailure("This source picture is not there any more. Choose another one.")
    return found


def show_sources(run: Run, choice: str) -> str:
    """The pictures of a choice, or why there are none."""
    try:
        files = find_sources(run, choice)
    except KnownFailure as error:
        return words.lines([str(error)], "problem")
    pictures = "".join(words.image(file, f"Source {number}") for number, file in enumerate(files, start=1))
    if not pictures:
        return ""
    hint = "What is drawn from it shows much of it: look before you put that on the card."
    return (
        f"<figure class='starts'><figcaption>Source</figcaption>{pictures}</figure><p class='hint'>{hint}</p>"
    )


def keep_sources(run: Run, files: Iterable[str | Path]) -> str:
    """Keeps uploaded pictures, their pixels only, in the run's folder; returns the choice that means them."""
    paths = sorted((Path(file) for file in files), key=lambda path: natural_order(path.name))
    if not paths:
        raise KnownFailure("Choose a picture to start from.")
    check_sources(run, len(paths))
    pictures = [load_picture(path) for path in paths]
    folder = run.path / FOLDER / secrets.token_hex(6)
    folder.mkdir(parents=True)
    for number, picture in enumerate(pictures, start=1):
        picture.save(folder / f"{number}.png", compress_level=1)
    for old in _uploads(run)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return f"{UPLOAD}-{folder.name}"


def _uploads(run: Run) -> list[Path]:
    """The newest first."""
    folders = [folder for folder in (run.path / FOLDER).glob("*") if folder.is_dir()]
    return sorted(folders, key=lambda folder: folder.stat().st_mtime_ns, reverse=True)


def source_choice() -> tuple[gr.Dropdown, gr.UploadButton, gr.HTML]:
    """Lays out what chooses the picture to start from."""
    source = gr.Dropdown(
        [("None", NOTHING)],
        value=NOTHING,
        label="Source",
        info="The picture to start from",
        allow_custom_value=True,
        elem_id="source",
        min_width=220,
    )
    upload = gr.UploadButton(
        "Use a picture of your own",
        file_count="multiple",
        file_types=["image"],
        size="sm",
        elem_id="add-source",
    )
    return source, upload, gr.HTML(elem_id="sources")
