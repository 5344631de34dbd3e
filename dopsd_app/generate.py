"""What a LoRA draws: for the command line, and in a worker that stays warm.

`python -m dopsd_app.generate RUNS_DIR` is the worker process: it serves what `drawing.ask` writes down.
"""

import re
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path

from diffusers.training_utils import free_memory
from PIL import Image

from dopsd_app.checks.previews import save_picture
from dopsd_app.checks.teacher_check import teacher_check
from dopsd_app.config import TrainConfig
from dopsd_app.data.pictures import read_examples
from dopsd_app.errors import KnownFailure, is_out_of_memory, unexpected
from dopsd_app.files import is_disk_full
from dopsd_app.jobs.drawing import CheckRequest, Drawing, PictureRequest, write_drawing_status
from dopsd_app.jobs.drawing_queue import claim, is_cancelled, leave, next_drawing, reason_to_leave
from dopsd_app.jobs.lora_file import check_intact, find_lora
from dopsd_app.jobs.runs import Run, known_run, run_lock, start_next
from dopsd_app.jobs.worker import BUSY
from dopsd_app.models.base_download import fetch_base_model
from dopsd_app.models.studio import Studio
from dopsd_app.progress import DownloadProgress, PhaseProgress

IDLE_SECONDS = 300  # without a request; then the memory is given back
LOOK_SECONDS = 0.2  # between looks for a request, or for a reason to leave


def generate(
    run: Run,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    out: Path,
    strength: float = 1.0,
    checkpoint: int | None = None,
    base_too: bool = False,
) -> Iterator[Path]:
    """Draws every prompt with every seed: the official pipeline, the run's LoRA, the native step count.

    `checkpoint` takes the LoRA of that step instead of the finished one (or of the newest checkpoint);
    `base_too` draws the same noise without the LoRA as well. Yields each PNG file in `out`. Raises
    `KnownFailure` where there is no LoRA.
    """
    config = run.config
    lora = find_lora(run, checkpoint)  # what is not there, or damaged, is told before anything is loaded
    check_intact(run, lora)
    studio = Studio(config)
    conditionings = studio.encode(prompts)
    studio.load_transformer()
    studio.wear(lora, strength)
    out.mkdir(parents=True, exist_ok=True)
    variant = "" if lora == run.lora_file else f"_step{int(lora.parent.name)}"
    variant += f"_strength{strength:g}" if strength != 1 else ""
    for number, (prompt, conditioning) in enumerate(zip(prompts, conditionings, strict=True), start=1):
        for seed in seeds:
            name = f"{number}-{_file_name(prompt)}_{seed}"
            for suffix, with_lora in ((variant, True), ("_base", False))[: 1 + base_too]:
                file = out / f"{name}{suffix}.png"
                studio.draw(conditioning, config, seed, with_lora).save(file)
                yield file


def _file_name(prompt: str) -> str:
    return re.sub(r"\W+", "-", prompt.lower()).strip("-")[:60] or "picture"


# --- the warm worker


def serve(runs_dir: Path, idle_seconds: float = IDLE_SECONDS) -> int:
    """Draws what is asked for, oldest first, until a run wants the GPU or nobody asks: then its exit code."""
    lock = run_lock(runs_dir)
    if not claim(runs_dir, lock):
        return BUSY
    _log("begins")
    desk, active = Desk(runs_dir), time.monotonic()
    try:
        while True:
            reason = reason_to_leave(runs_dir)
            idle = time.monotonic() - active > idle_seconds
            if reason or idle:
                desk.clear()  # the lock is no promise while a card is still full
                if leave(runs_dir, lock, reason):
                    break
            if drawing := next_drawing(runs_dir):
                desk.serve(drawing)
                active = time.monotonic()
            else:
                time.sleep(LOOK_SECONDS)
    finally:
        lock.release()
    _log(f"leaves: {reason or 'nobody asks'}")
    start_next(runs_dir)
    return 0


class Desk:
    """Serves drawings one after the other, and keeps the studio and the base's picture of the last one."""

    def __init__(self, runs_dir: Path):
        self.runs_dir = runs_dir
        self.clear()

    def clear(self) -> None:
        """Gives the memory back."""
        self.studio: Studio | None = None
        self.base_drawn: tuple[tuple, Image.Image] | None = None  # what it was drawn for, and the picture
        free_memory()

    def serve(self, drawing: Drawing) -> None:
        """Draws one to its end, or until it is cancelled, fails or must give way."""
        started = time.perf_counter()
        try:
            with closing(self._job(drawing)) as job:
                for event in job:
                    state, done, total = event.phase, event.done, event.total
                    if is_cancelled(drawing):
                        write_drawing_status(drawing, "cancelled")
                        return
                    if reason := reason_to_leave(self.runs_dir):
                        write_drawing_status(drawing, "failed", reason=reason)
                        return
                    state = state if state in ("downloading", "drawing") else "loading"
                    speed = event.speed if isinstance(event, DownloadProgress) else 0.0
                    write_drawing_status(drawing, state, done, total, speed=speed)
            _log(f"{drawing.id}: {time.perf_counter() - started:.2f} s")
            write_drawing_status(drawing, "done", done, total)
        except Exception as error:  # the border: the person is told, the next is served
            if not isinstance(error, KnownFailure):
                self.studio = None  # what is loaded may be half of it
                with suppress(OSError):  # a full disk; the status comes last, and must get through
                    _log("".join(traceback.format_exception(error)))
            elif detail := getattr(error, "detail", ""):
                _log(f"{drawing.id}: {detail}")
            write_drawing_status(drawing, "failed", reason=explain(error))

    def _job(self, drawing: Drawing) -> Iterator[PhaseProgress]:
        request = drawing.request
        yield PhaseProgress("loading", 0, 3)
        config = self._config(request)
        yield from fetch_base_model(config.base_model, config.revision)
        if isinstance(request, CheckRequest):
            examples = read_examples(request.folder, minimum_side=config.minimum_side).examples
            yield from teacher_check(self._studio(config), config, examples, drawing.path)
            return
        run = known_run(self.runs_dir, request.run_id)
        studio = self._studio(config)
        conditioning = studio.encode([request.prompt])[0]
        yield PhaseProgress("loading", 1, 3)
        studio.load_transformer()
        yield PhaseProgress("loading", 2, 3)
        lora = find_lora(run, request.checkpoint)
        if not studio.wears(lora):
            check_intact(run, lora)
        studio.wear(lora, request.strength)
        yield PhaseProgress("drawing", 0, 2)
        key = (request.prompt, request.seed, config.num_inference_steps, config.resolution)
        if self.base_drawn is None or self.base_drawn[0] != key:  # another strength leaves it as it is
            self.base_drawn = key, studio.draw(conditioning, config, request.seed, with_lora=False)
        save_picture(self.base_drawn[1], drawing.base)
        yield PhaseProgress("drawing", 1, 2)
        save_picture(studio.draw(conditioning, config, request.seed), drawing.lora)
        yield PhaseProgress("drawing", 2, 2)

    def _config(self, request: PictureRequest | CheckRequest) -> TrainConfig:
        if isinstance(request, CheckRequest):
            return request.config
        return known_run(self.runs_dir, request.run_id).config

    def _studio(self, config: TrainConfig) -> Studio:
        if self.studio is None or not self.studio.serves(config):
            self.clear()  # before the next one needs the memory
            _log(f"loads {config.base_model}")
            self.studio = Studio(config)
        return self.studio


def explain(error: Exception) -> str:
    """A sentence for the person: what happened and what to do."""
    if is_disk_full(error):
        return "The disk is full. Free some space, then draw again."
    if isinstance(error, KnownFailure):
        return str(error)
    if is_out_of_memory(error):
        return "Out of memory. Close other programs that use memory, then draw again."
    return f"{unexpected(error)} The whole trace is in .drawings/log.txt."


def _log(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(serve(Path(sys.argv[1]).absolute()))
