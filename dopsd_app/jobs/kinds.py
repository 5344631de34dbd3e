"""The kinds of long work that there are. One costs a file with a function, and a line here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One kind of long work.

    Its function gets the job and yields events (`jobs.events`). It ends with `Finished`, `Stopped` or
    `Failed`, or returns what came of it, a dictionary of plain values: that is then the job's result.
    """

    name: str
    function: str  # "module:function"; imported in the worker alone, for it may bring torch
    again: str  # what a person does after it has failed: "resume the run", "draw again"
    # Whether it computes: of such jobs one is at work at a time, and the others wait in a queue.
    computes: bool = True
    # Whether its worker keeps what it has loaded for the next job of such a kind; it gives way to all others.
    warm: bool = False


KINDS: dict[str, Kind] = {}


def register(kind: Kind) -> None:
    """Makes a kind known to this process."""
    KINDS[kind.name] = kind


TRAIN = Kind("train", "dopsd_app.train:work", "resume the run")
DRAW = Kind("draw", "dopsd_app.generate:draw", "draw again", warm=True)
CHECK_TEACHER = Kind("check-teacher", "dopsd_app.generate:check_teacher", "look again", warm=True)
CHECK_BASE = Kind("check-base", "dopsd_app.check_base:work", "check it again")
DOWNLOAD = Kind("download", "dopsd_app.download:work", "fetch it again", computes=False)
CAPTION = Kind("caption", "dopsd_app.caption:work", "ask for the captions again")
PUSH = Kind("push", "dopsd_app.hub.push_job:work", "push again", computes=False)
for known in (TRAIN, DRAW, CHECK_TEACHER, CHECK_BASE, DOWNLOAD, CAPTION, PUSH):
    register(known)
