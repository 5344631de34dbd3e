"""As a process: tells in a file what it is, and what the libraries have made of its environment."""

import json
import os
import signal
import sys
from pathlib import Path

from tests.support.fork_server import IMPORTS


def constants() -> dict[str, str]:
    """All plain values that modules hold under names in capitals."""
    return {
        f"{name}.{key}": repr(value)
        for name, module in list(sys.modules.items())
        if name not in ("__main__", "__mp_main__")
        for key, value in list(vars(module).items())
        if key.isupper() and isinstance(value, str | bool | int | float | Path | None)
    }


if __name__ == "__main__":
    IMPORTS[sys.argv[2]]()
    shown = sorted(Path("/proc/self/environ").read_text().strip("\0").split("\0"))
    names = [line.partition("=")[0] for line in shown]
    told = {
        "arguments": sys.argv[1:],
        "command": Path("/proc/self/cmdline").read_text().strip("\0").split("\0"),
        "shown": shown,
        "variables": [f"{name}={os.environ.get(name)}" for name in names],
        "folder": os.getcwd(),
        "path": sys.path,
        "leads_a_session": os.getsid(0) == os.getpid(),
        "signals": {number.name: str(signal.getsignal(number)) for number in signal.Signals},
        "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
        "files": [os.path.realpath(f"/proc/self/fd/{number}") for number in (1, 2)],
        "read": sys.stdin.read(),
        "constants": constants(),
    }
    Path(sys.argv[1]).write_text(json.dumps(told))
    print("printed")
    sys.exit(7)
