"""How long a job was at work, by its events: what lies between two of its processes does not count."""

import re
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from dopsd_app.jobs.job import Job

# The beginning of a line as `append_event` writes it: most lines need not be read for this, and some files
# have tens of thousands.
LINE = re.compile(rb'^\{"event": "(\w+)", "time": ([\d.]+)', re.MULTILINE)
PREPARING = (b"PhaseProgress", b"DownloadProgress", b"MemoryPlanned")  # what a process tells first
LONGEST_SILENCE = 600.0  # seconds between two of those: a process that ended there told nothing of it


def worked_seconds(job: Job) -> float:
    """Seconds that its processes have worked, up to its last event; 0 for one that has told nothing."""
    try:
        facts = job.events_file.stat()
    except OSError:
        return 0.0
    return _worked(job.events_file, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=1024)
def _worked(file: Path, changed: int, size: int) -> float:
    told = [(name, float(moment)) for name, moment in LINE.findall(file.read_bytes())]
    seconds = 0.0
    for (before, began), (after, ended) in pairwise(told):
        if after not in PREPARING:
            seconds += max(0.0, ended - began)  # clocks are set
        elif before in PREPARING:
            seconds += min(LONGEST_SILENCE, max(0.0, ended - began))
        # Else another process begins. One that plans anew when memory ran out does so at once.
    return seconds
