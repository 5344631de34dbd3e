"""`python -m dopsd_app`: everything that the page can do, from the command line."""

import sys

from dopsd_app.cli import main

if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(
            errors="replace"
        )  # a terminal that lacks a letter of a file's name must not end us
    sys.exit(main())
