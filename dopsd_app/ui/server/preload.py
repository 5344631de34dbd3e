"""What a browser needs before the page can be used, named at the page's top.

By itself it finds out in five rounds, each from the files of the last, and asks for every style sheet alone.
`preload.txt` has the names of Gradio's files; `python -m benchmarks.slow_line preload` writes it anew.
"""

import hashlib
from pathlib import Path

from gradio.routes import BUILD_PATH_LIB

PRELOADED = Path(__file__).with_suffix(".txt")
# With another version of Gradio, some have other names: a browser then finds them by itself.
FILES = [file for name in PRELOADED.read_text().split() if (file := Path(BUILD_PATH_LIB, name)).exists()]
STYLES = b"\n".join(file.read_bytes() for file in FILES if file.suffix == ".css")
STYLES_PATH = f"/assets/styles-{hashlib.sha256(STYLES).hexdigest()[:8]}.css"


def _links() -> str:
    scripts = [
        f'<link rel="modulepreload" crossorigin href="./assets/{file.name}">'
        for file in FILES
        if file.suffix == ".js"
    ]
    together = f'<link rel="stylesheet" crossorigin href=".{STYLES_PATH}">'
    # Gradio's script asks for no style sheet that has a link, and a browser for none of a type that it does
    # not know: one that is only `disabled`, Chromium fetches as soon as it reads of it.
    alone = [
        f'<link rel="stylesheet" type="text/in-one-file" href="./assets/{file.name}">'
        for file in FILES
        if file.suffix == ".css"
    ]
    return "".join([*scripts, together, *alone])


LINKS = _links().encode()
