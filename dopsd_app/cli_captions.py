"""The command that has captions written for a folder of pictures."""

import argparse
import sys
import time
from pathlib import Path

from tqdm import tqdm

from dopsd_app.config import KINDS, SUBJECT
from dopsd_app.jobs.events import CaptionWritten, Event, EventReader, Warned
from dopsd_app.jobs.follow import BYTES, POLL_SECONDS, show_bytes
from dopsd_app.jobs.job import Job
from dopsd_app.jobs.queue import send_command, start_next
from dopsd_app.models.captioner_facts import LENGTHS
from dopsd_app.progress import DownloadProgress, PhaseProgress, words_for_count


def add_caption(command: argparse.ArgumentParser) -> None:
    """The arguments of `caption`."""
    command.add_argument("folder", type=Path, help="of pictures; each caption becomes a .txt beside its own")
    command.add_argument(
        "--trigger-word", default="", metavar="WORD", help="the word that stands for the new concept"
    )
    command.add_argument(
        "--kind", choices=KINDS, default=SUBJECT, help="what is to be learned; default: %(default)s"
    )
    command.add_argument(
        "--what", default="", metavar="WORD", help="an ordinary word for the subject, such as dog"
    )
    command.add_argument("--length", choices=LENGTHS, default="medium", help="default: %(default)s")
    command.add_argument("--overwrite", action="store_true", help="also where there is a caption already")


def caption(options: argparse.Namespace) -> int:
    """Has captions written, and tells each as it comes."""
    from dopsd_app.jobs.captioning import ask_for_folder  # brings Pillow
    from dopsd_app.models.captioner_words import Concept

    concept = Concept(options.trigger_word.strip(), options.kind, options.what)
    job = ask_for_folder(options.runs, options.folder, concept, options.length, overwrite=options.overwrite)
    try:
        _follow(job)
    except KeyboardInterrupt:
        send_command(job, "stop")
        print("Stopping. What is written stays.", file=sys.stderr)
        _follow(job)
    status = job.status
    if status.state not in ("finished", "stopped"):
        print(f"{status.state.capitalize()}: {status.reason}\nThe log: {job.log_file}", file=sys.stderr)
        return 1
    _tell(job)
    return 0


def _follow(job: Job) -> None:
    """Tells what happens until it ends."""
    reader, waits = EventReader(job.events_file), False
    with (
        tqdm(disable=None, leave=False, unit="picture") as bar,
        tqdm(**BYTES, leave=False, disable=None, delay=1) as download,
    ):
        while True:
            status = job.status  # looked at before the events, so that after an ending no event is missed
            for event in reader.poll():
                _show(event, bar, download)
            if status.state == "queued":
                if start_next(job.runs_dir) is None and not waits:
                    waits = True
                    tqdm.write("Waiting: another job is at work. Ctrl-C takes this one out of the queue.")
            elif not status.live:
                return
            time.sleep(POLL_SECONDS)


def _show(event: Event, bar: tqdm, download: tqdm) -> None:
    match event:
        case DownloadProgress():
            show_bytes(download, event)
        case PhaseProgress(phase=phase, done=done, total=total):
            download.close()
            bar.set_description(phase, refresh=False)
            bar.total, bar.n = total, done
            bar.refresh()
        case CaptionWritten(key=name, text=text, put=True):
            tqdm.write(f"{name}: {text}")
        case Warned(message=message):
            tqdm.write(message)


def _tell(job: Job) -> None:
    result = job.result
    if not result:
        print("Stopped. What is written stays.")
        return
    print(f"{words_for_count(result['put'], 'caption')} written.")
    if kept := result["kept"]:
        print(f"{words_for_count(kept, 'caption')} left as you wrote it meanwhile.")
    if unusable := result["unusable"]:
        print(f"For {words_for_count(unusable, 'picture')} the model wrote nothing that can be used.")
    if unreadable := result["unreadable"]:
        were = "was" if unreadable == 1 else "were"
        print(f"{words_for_count(unreadable, 'picture')} could not be read or {were} removed.")
