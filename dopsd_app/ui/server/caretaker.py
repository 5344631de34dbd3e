"""What the page's server does without anybody looking: it starts queued runs and runs scheduled pushes."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dopsd_app.hub.scheduled_push import run_scheduled_pushes
from dopsd_app.jobs.queue import start_next
from dopsd_app.jobs.runs import default_runs_dir

logger = logging.getLogger(__name__)
ROUND = 2.0  # seconds


def start_caretaker() -> None:
    """Starts its threads, which end with the process: a push may take minutes, and no run waits for it."""
    for duty in (start_next, run_scheduled_pushes):
        threading.Thread(target=_rounds, args=(duty,), name="caretaker", daemon=True).start()


def _rounds(duty: Callable[[Path], object]) -> None:
    while True:
        try:
            duty(default_runs_dir())
        except Exception:  # one bad run folder must not end the service for the others
            logger.exception("A round of the caretaker failed")
        time.sleep(ROUND)
