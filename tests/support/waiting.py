"""Waiting for jobs, and standing in their way."""

import time
from contextlib import contextmanager

from dopsd_app.jobs import card


def wait_for(condition, seconds=120):
    """The first true value of the condition."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
    return value


def ended(job):
    """How a job stands when it has ended."""
    wait_for(lambda: not job.status.busy)
    return job.status


@contextmanager
def holding_the_card(runs_dir):
    """This process computes meanwhile."""
    lock = card.CardLock()
    assert lock.take(runs_dir, "Another job", timeout=10)
    try:
        yield
    finally:
        lock.give_back()
