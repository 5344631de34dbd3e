"""`python -m dopsd_app`: everything that the page can do, from the command line."""

import io
import sys

from dopsd_app.cli import main
from dopsd_app.gpus import settle_on_a_card

if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # under `pythonw` there is none
            # A terminal that lacks a letter of a file's name must not end us.
            stream.reconfigure(errors="replace")
    settle_on_a_card()
    sys.exit(main())
