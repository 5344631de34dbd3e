"""Asking for pictures: a LoRA's, or the teacher's before any training; a warm worker draws.

Every fact is a file below `<runs>/.drawings`: a folder for each drawing, and which process draws. Whoever
decides something holds the runs' start lock, so that no drawing is lost between an asking and a leaving.
"""

import json
import secrets
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from filelock import Timeout

from dopsd_app.config import TrainConfig, make_config
from dopsd_app.files import insist, replace_file
from dopsd_app.jobs.lora_file import find_lora
from dopsd_app.jobs.runs import (
    RunError,
    Status,
    is_alive,
    known_run,
    list_runs,
    process_started,
    run_lock,
    start_lock,
    start_process,
)
from dopsd_app.models.catalog import full_name
from dopsd_app.progress import DownloadProgress

WORKER = (sys.executable, "-m", "dopsd_app.generate")  # gets the folder of runs as its last argument
KEPT = 30  # drawings; older ones are swept away when a new one is asked for
LIVE = ("waiting", "downloading", "loading", "drawing")  # states that a living worker must stand behind
ONE_JOB = "one job runs at a time. Draw when it has ended."
CUT_OFF = "A training began; draw again when it has ended."
ASKED_TO_LEAVE = "Another job needed the computer; draw again when it has ended."
GONE = "This drawing is not kept any more. Draw again."
DIED = "The process that draws ended without saying why: killed, or the computer went off. Draw again."


@dataclass(frozen=True)
class PictureRequest:
    """One prompt drawn twice from the same noise, without the LoRA and with it: base.png and lora.png."""

    run_id: str
    prompt: str
    seed: int
    strength: float = 1.0  # of the LoRA
    checkpoint: int | None = None  # its step; None: the finished LoRA, or the newest checkpoint


@dataclass(frozen=True)
class CheckRequest:
    """What the teacher sees in up to 4 pictures of a folder, before any training.

    `verdict.rows_drawn` and `verdict.read_check` read what comes of it from the drawing's folder.
    """

    config: TrainConfig
    folder: Path  # pictures and captions


@dataclass(frozen=True)
class DrawingStatus:
    """How a drawing stands, as its status.json holds it."""

    state: str = "waiting"  # waiting, downloading, loading, drawing, done, failed or cancelled
    done: int = 0  # of `total` things of this state; bytes of a download
    total: int = 0
    reason: str = ""  # a sentence for the person: why it failed
    updated: float = 0.0  # seconds since 1970
    speed: float = 0.0  # of a download, in bytes per second

    @property
    def live(self) -> bool:
        return self.state in LIVE

    @property
    def download(self) -> DownloadProgress | None:
        """How far the base model has been fetched, while it is."""
        if self.state != "downloading":
            return None
        return DownloadProgress("downloading", self.done, self.total, self.speed)


@dataclass(frozen=True)
class Drawing:
    """One drawing: a folder; everything else is read from it."""

    path: Path  # absolute

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def runs_dir(self) -> Path:
        return self.path.parent.parent

    @property
    def request(self) -> PictureRequest | CheckRequest:
        fields = json.loads((self.path / "request.json").read_text(encoding="utf-8"))
        if "config" in fields:
            return CheckRequest(make_config(fields["config"]), Path(fields["folder"]))
        return PictureRequest(**fields)

    @property
    def status(self) -> DrawingStatus:
        return read_drawing_status(self)

    @property
    def base(self) -> Path:
        return self.path / "base.png"

    @property
    def lora(self) -> Path:
        return self.path / "lora.png"


# --- for the page


def ask(runs_dir: Path, request: PictureRequest | CheckRequest) -> Drawing:
    """Puts a request before the warm worker, and starts the worker where there is none.

    Raises `RunError` while a run trains or waits to, and for a LoRA that is not there.
    """
    runs_dir = runs_dir.absolute()
    folder = drawings_folder(runs_dir)
    if isinstance(request, CheckRequest):
        # The worker has another current folder.
        config = replace(request.config, base_model=full_name(request.config.base_model))
        request = replace(request, config=config, folder=request.folder.absolute())
    else:
        find_lora(known_run(runs_dir, request.run_id), request.checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    with start_lock(runs_dir):
        refuse_beside_training(runs_dir)
        if not worker_alive(runs_dir):
            _start_worker(runs_dir)
        _sweep(runs_dir)
        # The worker was started first, and waits for the start lock: who reads "waiting" finds it alive.
        name = f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}-{secrets.token_hex(6)}"
        new = Drawing(folder / f".new-{name}")
        new.path.mkdir()
        replace_file(new.path / "request.json", json.dumps(asdict(request), default=str))
        write_drawing_status(new, "waiting")
        return Drawing(insist(lambda: new.path.rename(folder / name)))


def read_drawing(runs_dir: Path, id: str) -> Drawing:
    """The drawing of this id; `RunError` when there is none, or none any more."""
    drawing = Drawing(drawings_folder(runs_dir.absolute()) / Path(id).name)
    if not (drawing.path / "request.json").is_file():
        raise RunError(GONE)
    return drawing


def cancel(drawing: Drawing) -> None:
    """Takes a waiting drawing back at once; one that is being drawn ends after the picture at hand."""
    with start_lock(drawing.runs_dir):
        status = drawing.status
        if status.state == "waiting":
            write_drawing_status(drawing, "cancelled")
        elif status.live:
            (drawing.path / "cancel").touch()


def ask_to_leave(runs_dir: Path) -> bool:
    """Asks a warm worker to free the GPU, after the picture at hand; says whether there is one."""
    with start_lock(runs_dir):
        alive = worker_alive(runs_dir)
        if alive:
            (drawings_folder(runs_dir) / "leave").touch()
        return alive


def worker_alive(runs_dir: Path) -> bool:
    """Whether a warm worker is there, or on its way."""
    return is_alive(read_worker(runs_dir))


def refuse_beside_training(runs_dir: Path) -> None:
    for run in list_runs(runs_dir):
        status = run.status
        if status.live or status.state == "queued":
            what = "is being trained" if status.live else "waits to be trained"
            raise RunError(f"{run.id} {what}, and {ONE_JOB}")


def _start_worker(runs_dir: Path) -> None:
    """Starts the worker and writes down which process it is; under the start lock."""
    folder = drawings_folder(runs_dir)
    try:
        with run_lock(runs_dir).acquire(timeout=0):
            pass
    except Timeout:
        raise RunError(f"Another job is at work, and {ONE_JOB}") from None
    settle(runs_dir, DIED)
    (folder / "leave").unlink(missing_ok=True)
    try:
        pid = start_process([*WORKER, str(runs_dir)], folder / "log.txt")
    except OSError as error:
        raise RunError(f"The process that draws could not be started: {error}.") from error
    write_worker(runs_dir, pid)


def _sweep(runs_dir: Path) -> None:
    for drawing in _list_drawings(runs_dir)[: -KEPT + 1]:
        if not _is_unfinished(drawing):
            shutil.rmtree(
                drawing.path, ignore_errors=True
            )  # what a reader holds open stays till the next time


# --- files


def drawings_folder(runs_dir: Path) -> Path:
    return runs_dir / ".drawings"


def _list_drawings(runs_dir: Path) -> list[Drawing]:
    """All drawings, oldest first."""
    return [Drawing(path) for path in sorted(drawings_folder(runs_dir).glob("[0-9]*"))]


def read_drawing_status(drawing: Drawing) -> DrawingStatus:
    """How the drawing stands now; a live state without a worker reads as failed."""
    status = _stored_status(drawing)
    if status.live and not worker_alive(drawing.runs_dir):
        status = _stored_status(drawing)  # it may have had its last word between the two looks
        if status.live:
            return replace(status, state="failed", reason=DIED)
    return status


def write_drawing_status(
    drawing: Drawing, state: str, done: int = 0, total: int = 0, reason: str = "", speed: float = 0.0
) -> None:
    """For the worker, or under the start lock."""
    status = DrawingStatus(state, done, total, reason, time.time(), speed)
    replace_file(drawing.path / "status.json", json.dumps(asdict(status)))


def _stored_status(drawing: Drawing) -> DrawingStatus:
    try:
        return DrawingStatus(**json.loads(insist((drawing.path / "status.json").read_bytes)))
    except FileNotFoundError as error:
        raise RunError(GONE) from error


def unfinished_drawings(runs_dir: Path) -> list[Drawing]:
    """The drawings that wait or are being drawn, oldest first."""
    return [drawing for drawing in _list_drawings(runs_dir) if _is_unfinished(drawing)]


def _is_unfinished(drawing: Drawing) -> bool:
    try:
        return _stored_status(drawing).live
    except RunError:  # the rest of a folder that was just being removed
        return False


def settle(runs_dir: Path, reason: str) -> None:
    """Ends every unfinished drawing as failed."""
    for drawing in unfinished_drawings(runs_dir):
        write_drawing_status(drawing, "failed", reason=reason)


def read_worker(runs_dir: Path) -> Status:
    """Which process draws, as far as is known."""
    with suppress(FileNotFoundError):
        return Status(**json.loads(insist((drawings_folder(runs_dir) / "worker.json").read_bytes)))
    return Status()


def write_worker(runs_dir: Path, pid: int) -> None:
    facts = {"pid": pid, "pid_started": process_started(pid)}
    replace_file(drawings_folder(runs_dir) / "worker.json", json.dumps(facts))
