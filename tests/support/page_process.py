"""`app.py` as a process that tells which modules it has imported, in a file, whenever it gets SIGUSR1.

With `RUNS_WORKER`, that script works on its runs in place of the real worker; with `FORK_SERVER`, the real
one is forked there.
"""

import json
import os
import runpy
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def tell(*_) -> None:
    file = Path(os.environ["TOLD_MODULES"])
    temporary = file.with_suffix(".new")
    temporary.write_text(json.dumps(sorted(sys.modules)))
    temporary.rename(file)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, tell)
    sys.path.insert(0, str(ROOT))
    from tests.support import forks

    if forks.PLACE in os.environ:
        forks.fork_workers()
    if "RUNS_WORKER" in os.environ:
        from dopsd_app.jobs.launcher import launcher

        launcher.command = (sys.executable, os.environ["RUNS_WORKER"])
    runpy.run_path(str(ROOT / "app.py"), run_name="__main__")
