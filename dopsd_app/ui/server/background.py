"""What the server does without a request: it starts queued runs and makes the pushes that are scheduled."""

import logging
import threading
import time
from types import FunctionType

from dopsd_app.hub.scheduled_push import run_scheduled_pushes
from dopsd_app.jobs.queue import start_next
from dopsd_app.jobs.runs import default_runs_dir

logger = logging.getLogger(__name__)
INTERVAL = 2.0  # seconds


def start_background_threads() -> None:
    """A thread for each task, which ends with the process: no run waits for a push that takes minutes."""
    tasks: tuple[FunctionType, ...] = (start_next, run_scheduled_pushes)
    for task in tasks:
        threading.Thread(target=_repeat, args=(task,), name=task.__name__, daemon=True).start()


def _repeat(task: FunctionType) -> None:
    while True:
        try:
            task(default_runs_dir())
        except Exception:  # one bad run folder must not end the service for the others
            logger.exception("The background task %s failed", task.__name__)
        time.sleep(INTERVAL)
