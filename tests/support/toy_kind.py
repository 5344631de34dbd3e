"""A kind of job in one file: it counts, and what comes of it is the sum. As a process: its worker."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # as it is started by its path

from dopsd_app.jobs import worker
from dopsd_app.jobs.kinds import Kind, register
from dopsd_app.jobs.launcher import launcher
from dopsd_app.progress import PhaseProgress

ADD = Kind("add", "tests.support.toy_kind:add", "add again")
ASIDE = Kind("add-aside", "tests.support.toy_kind:add", "add again", computes=False)
KEEP = Kind("add-warm", "tests.support.toy_kind:add", "add again", warm=True)
for kind in (ADD, ASIDE, KEEP):
    register(kind)
launcher.command = (sys.executable, __file__)


def add(job):
    """The sum of the numbers that were asked for, one after the other; a text among them is a failure."""
    total = 0
    for done, number in enumerate(job.request["numbers"]):
        yield PhaseProgress("adding", done, len(job.request["numbers"]))
        time.sleep(job.request.get("seconds", 0))
        total += number
    return {"sum": total}


if __name__ == "__main__":
    sys.exit(worker.main(sys.argv[1:]))
