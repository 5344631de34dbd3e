"""A worker without a model: a job that counts, run through the real harness in a process of its own."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # as it is started by its path

from dopsd_app.jobs import job, launcher, queue, runs, worker
from dopsd_app.jobs.events import CheckpointSaved, Finished, PreviewSaved, Resumed, StepDone, Stopped
from dopsd_app.progress import PhaseProgress
from tests.support.checkpoint_files import leave_checkpoint

launcher.launcher.command = (sys.executable, __file__)  # the next run, too, gets this worker
SECONDS = 0.02


def count(run):
    """`config.steps` steps of nothing, with checkpoints; the run's name chooses what goes wrong."""
    config = run.config
    yield PhaseProgress("loading", 1, 1)
    yield PhaseProgress("encoding", 1, 1)
    newest = runs.latest_checkpoint(run)
    step = int(newest.name) if newest else 0
    yield Resumed(step)
    while step < config.steps:
        step += 1
        time.sleep(SECONDS)
        if config.name.startswith("fails") and step == 3 and not newest:
            fail(config.name, run)
        yield StepDone(step, 1 / step, 1.0, SECONDS, 0)
        stop = "stop" in job.take_commands(run)
        if stop or step % config.checkpoint_every == 0:
            yield CheckpointSaved(step, leave_checkpoint(run, step).name)
            if config.preview_every:
                yield PreviewSaved(step, "rollout", ("previews/student.webp", "previews/teacher.webp"))
        if stop and config.name == "slow-to-stop":
            time.sleep(10)
        if stop:
            yield Stopped(step)
            return
    if config.name == "ends-silently":
        return
    run.lora_file.write_bytes(b"weights")
    yield Finished(step, run.lora_file.name)


def fail(name, run):
    class OutOfMemoryError(RuntimeError):
        """Has the name of torch's."""

    if name == "fails-memory":
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
    if name == "fails-sentence":
        raise job.RunError("The model is gone. Fetch it again.")
    if name == "fails-disk":  # fill the disk to its last byte, as pictures or another program would
        with (run.path / "filler").open("wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
    raise ZeroDivisionError("division by zero")


def write_status(run):
    until = time.monotonic() + 1.5
    step = 0
    while time.monotonic() < until:
        step += 1
        job.write_status(run, step=step, reason="x" * 5000)


if __name__ == "__main__":
    path, task = Path(sys.argv[1]), sys.argv[2:]
    if task == ["start-next"]:
        started = queue.start_next(path)
        print(started and started.id)
    elif task == ["write-status"]:
        write_status(runs.Run(path))
    else:
        sys.exit(worker.work(runs.Run(path), count))
