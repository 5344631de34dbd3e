"""The endpoints that draw with a run's LoRA, and that tell what was drawn."""

import time
from dataclasses import asdict
from pathlib import Path

import gradio as gr
from gradio.processing_utils import save_file_to_cache
from gradio.utils import get_upload_folder

from dopsd_app.errors import KnownFailure
from dopsd_app.hub.card_pictures import keep_picture
from dopsd_app.jobs.drawing import BASE, MAX_SEEDS, Column, Drawing, PictureRequest, follow, is_of_today
from dopsd_app.jobs.drawing import list_drawings as drawings_of
from dopsd_app.jobs.runs import Run
from dopsd_app.ui import run_actions, try_sources
from dopsd_app.ui.picture_requests import draw as ask_for

POLL = 0.1  # seconds between two readings of a drawing's status


def draw(
    run_id: str, prompt: str, seed: int = 0, strength: float = 1.0, step: int = 0, source: str = ""
) -> dict:
    """Draws a prompt without the LoRA and with it, from the same noise; `step` 0 takes the finished LoRA.

    A LoRA of edits starts from `source`: as `keep_sources` returns it, or "own-2" for what the second
    training picture was made from, of which the first is taken where none is named. Returns the drawing's
    id, for `keep_for_card`, and the two pictures.
    """
    run = run_actions.the_run(run_id)
    source = _source(run, source)
    request = PictureRequest(run.id, (prompt.strip(),), (seed,), (BASE, Column(step or None, strength)))
    drawing = wait_for(ask_for(run, request, source))
    return {"id": drawing.id, "base": copied(drawing.cell(0, 0)), "lora": copied(drawing.cell(0, 1))}


def draw_grid(
    run_id: str, prompts: list[str], columns: list[dict], seed: int = 0, count: int = 1, source: str = ""
) -> dict:
    """Draws prompts side by side: by the base, and by what each of `columns` names.

    A column is `{"step": 75, "strength": 0.6}`: without a step it is the finished LoRA, without a strength
    that is 1. Every prompt is drawn with `count` seeds from `seed` on; `source` as for `draw`. Returns what
    `show_drawing` does.
    """
    run = run_actions.the_run(run_id)
    seeds = tuple(range(seed, seed + min(count, MAX_SEEDS + 1)))
    request = PictureRequest(
        run.id, tuple(prompt.strip() for prompt in prompts), seeds, (BASE, *map(_column, columns))
    )
    drawing = wait_for(ask_for(run, request, _source(run, source)))
    return show_drawing(run_id, drawing.id)


def list_drawings(run_id: str) -> list[dict]:
    """What was drawn with a run's LoRA and is kept, the newest first: id, prompts, seeds, columns.

    `of_earlier_training` tells what this LoRA, which was trained further since, does not draw any more.
    """
    run = run_actions.the_run(run_id)
    return [_describe_drawing(run, drawing) for drawing in drawings_of(run)]


def show_drawing(run_id: str, drawing_id: str) -> dict:
    """A drawing of a run: id, prompts, seeds, columns, and `pictures` with what each was drawn with.

    `row` and `column` of a picture are for `keep_for_card`.
    """
    run = run_actions.the_run(run_id)
    drawing = next((drawing for drawing in drawings_of(run) if drawing.id == drawing_id), None)
    if drawing is None:
        raise KnownFailure("This drawing is not kept any more, or is of another run.")
    asked = drawing.asked_for(PictureRequest)
    pictures = [
        {
            "row": row,
            "column": column,
            **asdict(asked.rows[row]),
            **_plain(asked.columns[column]),
            "picture": copied(drawing.cell(row, column)),
        }
        for row in range(len(asked.rows))
        for column in range(len(asked.columns))
        if drawing.cell(row, column).exists()
    ]
    return {**_describe_drawing(run, drawing), "pictures": pictures}


def keep_for_card(run_id: str, drawing_id: str, row: int = 0, column: int = 1) -> None:
    """Puts a drawn picture on the run's model card, at most 5 of them."""
    keep_picture(run_actions.the_run(run_id), drawing_id, row, column)


def wait_for(drawing: Drawing) -> Drawing:
    """Comes back when the drawing is done; `KnownFailure` says why it was not."""
    while (status := follow(drawing)).busy:
        time.sleep(POLL)
    if status.state != "finished":
        raise KnownFailure(status.reason or "Cancelled.")
    return drawing


def _source(run: Run, source: str) -> str:
    """What a picture starts from where nothing is named."""
    return source or ("own-1" if run.sources else try_sources.NOTHING)


def _column(plain: dict) -> Column:
    step, strength = plain.get("step", 0), plain.get("strength", 1.0)
    known = not plain.keys() - {"step", "strength"}
    if not known or type(step) is not int or type(strength) not in (int, float):
        raise KnownFailure('Each of `columns` must be an object such as {"step": 75, "strength": 0.6}.')
    return Column(step or None, float(strength))


def _plain(column: Column) -> dict:
    return {"step": column.checkpoint or 0, "strength": column.strength}


def _describe_drawing(run: Run, drawing: Drawing) -> dict:
    asked = drawing.asked_for(PictureRequest)
    return {
        "id": drawing.id,
        "prompts": list(asked.prompts),
        "seeds": list(asked.seeds),
        "columns": [_plain(column) for column in asked.columns],
        "of_earlier_training": not is_of_today(run, drawing),
    }


def copied(path: str | Path) -> dict:
    """The copy of a file that clients may fetch: the folders of runs and drafts are closed to them."""
    return gr.FileData(path=save_file_to_cache(path, get_upload_folder())).model_dump()
