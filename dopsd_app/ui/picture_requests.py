"""What a person asks to be drawn: read from what was chosen on the page, and put before the worker."""

from collections.abc import Sequence
from contextlib import suppress

from dopsd_app.errors import KnownFailure
from dopsd_app.jobs.drawing import (
    BASE,
    MAX_SEEDS,
    Column,
    Drawing,
    PictureRequest,
    ask,
    cancel,
    check_request,
    is_of_today,
    list_drawings,
    read_drawing,
    unfinished_drawings,
)
from dopsd_app.jobs.job import RunError, start_lock
from dopsd_app.jobs.runs import Run
from dopsd_app.models.architecture import UNTAUGHT
from dopsd_app.planning.plan import check_fetch
from dopsd_app.ui.run_actions import the_run
from dopsd_app.ui.try_sources import find_sources
from dopsd_app.ui.use_file import FINISHED, chosen_step


def make_request(
    run: Run,
    prompts: str,
    steps: Sequence[str] | None,
    strengths: Sequence[str] | None,
    seed: int,
    batch: int,
) -> PictureRequest:
    """What a person has chosen: prompts by line, and the base beside every step at every strength."""
    lines = tuple(line.strip() for line in (prompts or "").splitlines() if line.strip())
    first, number = int(seed or 0), int(batch or 1)
    at = dict.fromkeys(_strength(text) for text in strengths or ())
    columns = [Column(chosen_step(step), strength) for step in steps or () for strength in at]
    seeds = tuple((first + place) % 2**32 for place in range(min(max(number, 0), MAX_SEEDS + 1)))
    return PictureRequest(run.id, lines, seeds, (BASE, *columns))


def draw(run: Run, request: PictureRequest, source: str) -> Drawing:
    """Asks the warm worker for the pictures, which start from those of a choice, if from any."""
    sources = find_sources(run, source)
    check_request(run, request)
    check_fetch(run.config, UNTAUGHT)
    return ask(run.runs_dir, request, sources)


def _strength(text: str) -> float:
    try:
        return float(str(text).replace(",", "."))
    except ValueError:
        raise KnownFailure(f'A strength is a number such as 0.8, not "{text}".') from None


def step_choice(column: Column) -> str:
    return FINISHED if column.checkpoint is None else f"Step {column.checkpoint}"


def cancel_drawing(run_id: str) -> str:
    """Stops all drawing for a run, after the picture at hand."""
    run = the_run(run_id)
    with start_lock(run.runs_dir):  # one that is just being asked for is in the queue then
        unfinished = unfinished_drawings(run.runs_dir)
    for drawing in unfinished:
        if _run_of(drawing) == run.id:
            cancel(drawing)
    return "Cancelled."


def _run_of(drawing: Drawing) -> str:
    """The run whose LoRA is drawn with; empty for a check of the teacher, or what cannot be read."""
    with suppress(RunError):
        asked = drawing.asked
        return asked.run_id if isinstance(asked, PictureRequest) else ""
    return ""


def at_work(run: Run) -> Drawing | None:
    """The run's drawing that waits or is being drawn, the first of them."""
    mine = [drawing for drawing in unfinished_drawings(run.runs_dir) if _run_of(drawing) == run.id]
    return next(iter(mine), None)


def latest_drawing(run: Run) -> Drawing | None:
    """The run's drawing at work, or else the last one of its LoRA as that is today."""
    of_today = (drawing for drawing in list_drawings(run) if is_of_today(run, drawing))
    return at_work(run) or next(of_today, None)


def find_drawing(run: Run, shown: str) -> Drawing | None:
    """The drawing of this id, while it is kept."""
    with suppress(RunError):
        return read_drawing(run.runs_dir, shown)
    return None
