"""Pictures of drafts, runs and jobs by addresses of their own: the browser fetches each once and keeps it."""

import re
from collections.abc import Callable
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from urllib.parse import parse_qs, quote

import anyio
from PIL import Image
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from dopsd_app.data.drafts import DRAFT_NAME, default_drafts_dir
from dopsd_app.jobs.job import JOB_NAME, JOBS_FOLDER
from dopsd_app.jobs.runs import default_runs_dir
from dopsd_app.models.base_report import checks_folder

# Pixels of the longer side that pictures are sent at: nobody may have the server make all sizes there are.
SIDES = (256, 512, 1024, 2048)
# By the first word of an address: where its pictures lie, and what the folders there are called.
ROOTS: dict[str, tuple[Callable[[], Path], re.Pattern]] = {
    "drafts": (default_drafts_dir, DRAFT_NAME),
    "jobs": (
        lambda: default_runs_dir() / JOBS_FOLDER,
        JOB_NAME,
    ),  # before the runs, whose folder holds theirs
    "runs": (default_runs_dir, JOB_NAME),
    "checks": (checks_folder, re.compile(r"[0-9a-f]{24}")),  # of base models
}
ADDRESS = re.compile(rf"/pictures/({'|'.join(ROOTS)})/(.+)", re.DOTALL)
KEPT = "private, max-age=31536000, immutable"  # the address changes with the file
FORMATS = {".png": "PNG", ".webp": "WEBP", ".jpeg": "JPEG"}
WHOLE = "whole"  # in place of a side: the file as it is, to keep


class PictureFiles:
    """Middleware that answers the addresses which `address` gives; who may ask is `Doors`' to say."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", "")) if scope["type"] == "http" else ""
        asked = ADDRESS.fullmatch(path)
        if not asked:
            await self.app(scope, receive, send)
            return
        side = parse_qs(scope["query_string"].decode("latin-1")).get("side", [""])[0]
        content = None
        if side in (*map(str, SIDES), WHOLE) and (file := _find(asked[1], asked[2])):
            content = await anyio.to_thread.run_sync(_read, file, side)
        if content is None:
            answer: Response = PlainTextResponse("There is no such picture.", 404)
        elif side == WHOLE:
            answer = Response(content, headers={"cache-control": KEPT}, media_type="application/octet-stream")
        else:
            answer = Response(content, headers={"cache-control": KEPT}, media_type="image/webp")
        await answer(scope, receive, send)


def address(file: Path, longest: int) -> str:
    """Where the page's own browser finds a picture, as WebP of at most `longest` pixels on its longer side.

    Relative to the page, which may lie below a proxy's path. `OSError` where the file is not there.
    """
    return _address(file, next((str(side) for side in SIDES if side >= longest), str(SIDES[-1])))


def whole(file: Path) -> str:
    """Where it finds such a picture's file as it is."""
    return _address(file, WHOLE)


def _address(file: Path, side: str) -> str:
    for root, (find_folder, _) in ROOTS.items():
        if file.is_relative_to(folder := find_folder()):
            changed = file.stat().st_mtime_ns >> 20  # milliseconds or so: a page may hold hundreds of these
            return f"pictures/{root}/{quote(file.relative_to(folder).as_posix())}?side={side}&v={changed:x}"
    raise ValueError(f"{file} belongs to no draft, run, job or check.")


@lru_cache(maxsize=4096)
def read_size(file: str, changed: int) -> tuple[int, int]:
    """Width and height in pixels; `changed` is when the file was written last, in nanoseconds."""
    with Image.open(file, formats=list(FORMATS.values())) as opened:
        return opened.size


def _find(root: str, name: str) -> Path | None:
    """The file that an address means, if it is a picture of a draft, a run, a job or a check."""
    find_folder, known_name = ROOTS[root]
    folder, (first, *rest) = find_folder(), name.split("/")
    if not known_name.fullmatch(first) or not rest:
        return None
    if any(part.startswith(".") or not part for part in rest) or "\\" in name or "\0" in name:
        return None
    file = folder / name
    known = file.suffix in FORMATS and file.is_file()
    return file if known and file.resolve().is_relative_to(folder.resolve()) else None


def _read(file: Path, side: str) -> bytes | None:
    try:
        if side == WHOLE:
            return file.read_bytes()
        return encoded(str(file), file.stat().st_mtime_ns, int(side))
    except OSError:  # deleted meanwhile, or not whole
        return None


@lru_cache(maxsize=256)  # some tens of kilobytes each, an enlarged one some hundreds
def encoded(file: str, changed: int, longest: int) -> bytes:
    """A picture as WebP of at most `longest` pixels on its longer side."""
    with Image.open(file, formats=list(FORMATS.values())) as opened:
        if opened.format == "WEBP" and max(opened.size) <= longest:  # as it is: encoding takes longest
            return Path(file).read_bytes()
        picture = opened.convert("RGB")
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS, reducing_gap=2.0)
    content = BytesIO()
    picture.save(content, format="WEBP", quality=90, method=0)  # the fastest
    return content.getvalue()
