"""What commands share that work in the terminal: a download with a bar, the card, the queue."""

import sys
import time
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from tqdm import tqdm

from dopsd_app.errors import KnownFailure, is_out_of_memory
from dopsd_app.jobs.beside import when_free
from dopsd_app.jobs.card import CardLock, read_holder, wait_for_card
from dopsd_app.jobs.drawing import CheckRequest, Drawing, PictureRequest, ask, cancel, follow
from dopsd_app.jobs.follow import BYTES, hint, show_bytes
from dopsd_app.jobs.job import RunError
from dopsd_app.jobs.kinds import TRAIN
from dopsd_app.jobs.queue import computing, describe, start_next, start_what_waits
from dopsd_app.jobs.runs import Run
from dopsd_app.models.base_download import ask_hub, fetch_base_model, needs_fetching
from dopsd_app.models.catalog import catalog_name, find_repository, model_family

ROOM = "The page's model makes room ..."
REPORT_SECONDS = 30.0  # between two lines on a download, where there is no terminal for a bar


def fetch(name: str, revision: str, context: str = "auto") -> None:
    """Fetches what a base model lacks here for a teacher context, with a bar."""
    from dopsd_app.progress import words_for_download  # brings Pillow

    if not needs_fetching(name, revision, context):
        return
    try:
        with (
            closing(fetch_base_model(name, revision, context)) as progress,
            tqdm(**BYTES, disable=None) as bar,
        ):
            reported = time.monotonic()
            for step in progress:
                show_bytes(bar, step)
                # No terminal: a file, or a pipe.
                if bar.disable and time.monotonic() - reported > REPORT_SECONDS:
                    reported = time.monotonic()
                    print(words_for_download(step), file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("Stopped. What was fetched is kept: the next time goes on from there.", file=sys.stderr)
        raise


def family_of(base_model: str, revision: str) -> str:
    """The catalog's model that this is or is made from; of a repository that is not here, the Hub says."""
    known = catalog_name(base_model) is not None or not find_repository(base_model)
    if not known and needs_fetching(base_model, revision):
        ask_hub(base_model, revision)
    return model_family(base_model, revision)


def start(runs_dir: Path) -> None:
    """Starts what waits; the page's warm worker, where there is one, ends its picture and gives way."""
    announced = False
    while start_next(runs_dir) is None and (holder := read_holder()) and holder.warm:
        if not announced:
            print(ROOM)
        announced = True
        time.sleep(0.1)


def trains(runs_dir: Path) -> bool:
    """Whether a run of this folder is being trained: its process can draw for others."""
    return any(job.kind == TRAIN for job in computing(runs_dir))


def drawn(runs_dir: Path, request: PictureRequest | CheckRequest, sources: Sequence[Path] = ()) -> Drawing:
    """Asks for a drawing and comes back when it is done; Ctrl-C takes it back.

    Raises `KnownFailure` where it is refused, or was not done.
    """
    drawing = ask(runs_dir, request, sources)
    try:
        while (status := follow(drawing)).busy:
            time.sleep(0.1)
    except KeyboardInterrupt:
        cancel(drawing)
        raise
    if status.state != "finished":
        raise KnownFailure(status.reason or "Cancelled.")
    return drawing


@contextmanager
def card(runs_dir: Path) -> Generator[None]:
    """Holds the card, or is refused while another job has it; starts what was queued meanwhile."""
    runs_dir.mkdir(parents=True, exist_ok=True)
    if (holder := read_holder()) and holder.warm:
        print(ROOM)
    lock = CardLock()
    if not wait_for_card(lock, runs_dir, "A command", seconds=2):
        raise RunError(f"{_at_work(runs_dir)} is at work, and one job runs at a time. {_wait(runs_dir)}")
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise KnownFailure("Out of memory. Close other programs that use memory, then try again.") from error
    finally:
        lock.give_back()
        start_what_waits(runs_dir)


def _at_work(runs_dir: Path) -> str:
    live = computing(runs_dir)
    holder = read_holder()
    return describe(live[0]) if live else holder.what if holder else "Another job"


def _wait(runs_dir: Path) -> str:
    live = computing(runs_dir)
    if live and live[0].kind == TRAIN:
        return when_free(runs_dir, f": {hint('stop', Run(live[0].path))}")
    return "Wait for its end."
