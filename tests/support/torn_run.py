"""A training and what a kill in its midst would have left of it, for the time of one."""

import secrets
import shutil

from dopsd_app.jobs.events import CheckpointSaved, Event
from dopsd_app.jobs.runs import Run
from dopsd_app.train import train


def train_and_tear(run: Run) -> tuple[list[Event], Run]:
    """The events of a whole training, and a copy of its folder as it was at its first checkpoint."""
    torn = Run(run.path.with_name(run.id[:-12] + secrets.token_hex(6)))
    events = []
    for event in train(run):
        events.append(event)
        if isinstance(event, CheckpointSaved) and not torn.path.exists():
            shutil.copytree(run.path, torn.path)
    assert not torn.lora_file.exists()
    return events, torn
