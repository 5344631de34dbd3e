"""What a terminal shows of a run while a worker does it."""

import sys
import time
from pathlib import Path

from tqdm import tqdm

from dopsd_app.jobs.events import (
    CheckpointSaved,
    Event,
    EventReader,
    LoraChecked,
    MemoryPlanned,
    PreviewSaved,
    Resumed,
    StepDone,
    Warned,
)
from dopsd_app.jobs.job import RunError
from dopsd_app.jobs.promise import read_promise, words_for_delay
from dopsd_app.jobs.queue import send_command, start_next, waiting_jobs
from dopsd_app.jobs.runs import Run, default_runs_dir, latest_checkpoint
from dopsd_app.progress import DownloadProgress, PhaseProgress

POLL_SECONDS = 0.2
BYTES = {"desc": "downloading", "bar_format": "{l_bar}{bar}|{postfix}"}  # of a bar that shows a download


def follow(run: Run, reader: EventReader) -> int:
    """Shows what `reader` finds until the run ends; returns 0 when it finished or was stopped, else 1.

    The run does not depend on this process. Ctrl-C asks it to stop; a second one does not wait (130).
    """
    with (
        tqdm(total=run.status.steps, initial=run.status.step, unit="step", disable=None) as bar,
        tqdm(**BYTES, leave=False, disable=None, delay=1) as download,
    ):
        try:
            _watch(run, reader, bar, download)
        except KeyboardInterrupt:
            try:
                _stop(run)
                _watch(run, reader, bar, download)
            except KeyboardInterrupt:
                tqdm.write(f"The run goes on to its next checkpoint and then stops. See it: {hint('runs')}")
                return 130
    return _tell_ending(run)


def _watch(run: Run, reader: EventReader, bar: tqdm, download: tqdm) -> None:
    shown, delay, promise = "", "", read_promise(run.path)
    steps: list[StepDone] = []  # that were done meanwhile
    while True:
        status = run.status  # looked at before the events, so that after an ending no event is missed
        for event in reader.poll():
            if isinstance(event, DownloadProgress):
                show_bytes(download, event)
            else:
                download.close()  # it is over, or there was none
                _show(event, run, bar)
            if isinstance(event, StepDone):
                steps.append(event)
        if not delay and (delay := words_for_delay(promise, steps, status.steps)):
            tqdm.write(delay)
        if status.state == "queued":
            started = start_next(run.runs_dir)
            if started is None and (waits := _say_why_it_waits(run)) != shown:
                tqdm.write(shown := waits)
        elif not status.live:
            return
        time.sleep(POLL_SECONDS)


def show_bytes(bar: tqdm, progress: DownloadProgress) -> None:
    """Sets a bar of bytes to how far a download is; its speed is the progress' own."""
    from dopsd_app.progress import words_for_download  # brings Pillow

    bar.total, bar.n = progress.total or None, progress.done
    bar.set_postfix_str(words_for_download(progress), refresh=False)
    bar.refresh()


def _say_why_it_waits(run: Run) -> str:
    waiting = [job.path for job in waiting_jobs(run.runs_dir)]
    before = waiting.index(run.path) if run.path in waiting else 0
    queue = f"{before} more in the queue before it" if before else "it is the next"
    return f"Waiting: another run is at work, {queue}. Ctrl-C takes it out of the queue."


def _stop(run: Run) -> None:
    before = run.status.state
    try:
        send_command(run, "stop")
    except RunError:  # it ended in the meantime
        return
    saves = ": the run saves a checkpoint first"
    first = {"training": saves, "beside": saves, "downloading": ": what was fetched is kept"}
    tqdm.write(f"Stopping{first.get(before, '')}. Ctrl-C again does not wait for it.")


def _show(event: Event, run: Run, bar: tqdm) -> None:
    match event:
        case PhaseProgress(phase=phase, done=done, total=total):
            bar.set_description(f"{phase} {done}/{total}")
        case MemoryPlanned(memory=memory, message=message):
            tqdm.write(f"Up to {memory / 2**30:.1f} GB of memory. {message}")
        case Resumed(step=step):
            bar.reset(total=run.status.steps)
            bar.update(step)
        case StepDone(step=step, loss=loss, seconds=seconds):
            bar.set_description("training", refresh=False)
            bar.set_postfix_str(f"loss {loss:.4g}, {seconds:.2f} s/step", refresh=False)
            bar.update(step - bar.n)
        case PreviewSaved(step=step, kind=kind, files=(first, *others)) if first:
            more = f" and {len(others)} more" if others else ""
            tqdm.write(f"Step {step}, preview ({kind}): {run.path / first}{more}")
        case CheckpointSaved(step=step):
            tqdm.write(f"Step {step}, checkpoint saved")
        case Warned(step=step, message=message) if message:
            tqdm.write(f"Step {step}, warning: {message}")
        case LoraChecked(passed=passed, summary=summary):
            tqdm.write(f"Check of the LoRA file {'passed' if passed else 'FAILED'}: {summary}")


def _tell_ending(run: Run) -> int:
    status = run.status
    if status.state == "finished":
        config = run.config
        prompt = next(iter(config.preview_prompts), f"a picture of {config.trigger_word or '...'}")
        print(f'Finished. The LoRA: {run.lora_file}\nTry it: {hint("generate", run)} --prompt "{prompt}"')
        return 0
    if status.state == "stopped":
        print(f"Stopped at step {status.step} of {status.steps}. Go on: {hint('resume', run)}")
        return 0
    print(f"{status.state.capitalize()}: {status.reason}", file=sys.stderr)
    print(f"The log: {run.log_file}", file=sys.stderr)
    if latest_checkpoint(run):  # else the same would only fail again
        print(f"Go on: {hint('resume', run)}", file=sys.stderr)
    return 1


def hint(command: str, run: Run | None = None) -> str:
    """The command line that does this to the run, to be copied."""
    words = [_python(), "-m dopsd_app", command, *([run.id] if run else [])]
    if run and run.runs_dir != default_runs_dir():
        words.append(f'--runs "{run.runs_dir}"')
    return " ".join(words)


def _python() -> str:
    """This very Python, as one calls it from here: plain `python` may be another one, or none."""
    path = Path(sys.executable)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
