"""Captions written for pictures by a model that looks at them, as a job of its own."""

from collections.abc import Generator

import torch
from diffusers.training_utils import free_memory
from PIL import Image

from dopsd_app.config import TrainConfig
from dopsd_app.data.crops import cut_to, nearest_bucket
from dopsd_app.data.picture_file import PicturesError, load_picture
from dopsd_app.errors import KnownFailure, is_out_of_memory
from dopsd_app.jobs.captioning import CaptionRequest, ToCaption, read_asked
from dopsd_app.jobs.events import CaptionWritten, Event, Warned
from dopsd_app.jobs.job import Job
from dopsd_app.models.captioner import LoadedCaptioner, load_captioner
from dopsd_app.models.captioner_download import fetch_captioner, find_captioner
from dopsd_app.models.captioner_facts import MOST_TOKENS
from dopsd_app.models.captioner_words import HOW_LONG, clean_caption, instruction
from dopsd_app.models.load import choose_device
from dopsd_app.planning.captioning import Choice, captioners_that_fit, lengths_written, why_none
from dopsd_app.planning.machine import read_machine
from dopsd_app.progress import PhaseProgress

CAPTIONING = "captioning"  # the phase; its progress is in pictures
ENDS = ("put", "kept", "unusable", "unreadable")  # what becomes of a picture that was asked about


def work(job: Job) -> Generator[Event, None, dict]:
    """The job: writes captions for the pictures that were asked about, one picture after the other.

    What is written stays, however the job ends. Where the memory runs out, the next smaller model goes on.
    What comes of it is how many captions were put, kept beside what a person wrote, or could not be used, and
    how many pictures could not be read.
    """
    request = read_asked(job)
    yield PhaseProgress("loading", 0, 1)
    choose_device(TrainConfig())
    together = max(1 + len(asked.sources) for asked in request.pictures)
    choices = captioners_that_fit(read_machine(), pictures=together)
    if not choices:
        raise KnownFailure(_too_little())
    done: dict[str, str] = {}  # by picture key: one of ENDS
    while True:
        choice = choices[0]
        try:
            yield from _write(request, choice, done)
            break
        except Exception as error:
            choices = [smaller for smaller in choices if smaller.memory < choice.memory]
            if not is_out_of_memory(error) or not choices:
                raise
        # Only now: while an exception is at hand, it holds what was loaded.
        free_memory()
        yield Warned(len(done), f"The memory ran out with {choice.in_words}. {choices[0].in_words} goes on.")
    ends = list(done.values())
    return {end: ends.count(end) for end in ENDS}


def _too_little() -> str:
    machine = read_machine()
    if never := why_none(machine):
        return never
    least = min(choice.memory for choice in captioners_that_fit(machine, own=False))
    return (
        f"Writing captions needs {least / 2**30:.1f} GB of free memory, which is in use now. Close other"
        " programs that use it, then ask again."
    )


def _write(request: CaptionRequest, choice: Choice, done: dict[str, str]) -> Generator[Event]:
    """Writes the captions that are not done yet; each that is, is noted."""
    yield from fetch_captioner(choice.captioner)
    place = find_captioner(choice.captioner)
    assert place is not None  # it was just fetched
    yield PhaseProgress("loading", 0, 1)
    device = torch.device("cuda" if choice.on_gpu else "cpu")
    precision = getattr(torch, choice.precision)
    captioner = load_captioner(place, precision, device, choice.quantization, choice.area)
    for asked in request.pictures:
        yield PhaseProgress(CAPTIONING, len(done), len(request.pictures))
        if asked.key in done:
            continue
        try:
            texts = describe(captioner, request, asked, lengths_written(choice, request.length))
        except PicturesError as error:  # damaged, or removed meanwhile
            done[asked.key] = "unreadable"
            if not request.is_draft:  # where names are ours
                yield Warned(len(done), str(error))
            continue
        done[asked.key] = "unusable"
        if request.length in texts:
            done[asked.key] = "put" if request.put(asked, texts) else "kept"
        put = done[asked.key] == "put"
        for length, text in texts.items():
            yield CaptionWritten(len(done), asked.key, length, text, put and length == request.length)
    yield PhaseProgress(CAPTIONING, len(done), len(request.pictures))


def read_pictures(request: CaptionRequest, asked: ToCaption) -> list[Image.Image]:
    """What a picture is made from, and the picture itself last, each cropped as training crops it."""
    cropped = []
    for path in (*asked.sources, asked.picture):
        picture = load_picture(path)
        height, width = nearest_bucket(*picture.size, request.resolution, request.multiple)
        cropped.append(cut_to(picture, width / height, asked.focus))
    return cropped


def describe(
    captioner: LoadedCaptioner, request: CaptionRequest, asked: ToCaption, lengths: tuple[str, ...]
) -> dict[str, str]:
    """The captions of one picture by length, from one look at it; without those that cannot be used."""
    pictures = read_pictures(request, asked)
    questions = [(HOW_LONG[length], MOST_TOKENS[length]) for length in lengths]
    answers = captioner.answers(pictures, instruction(request.concept), questions)
    texts = {
        length: clean_caption(answer, request.concept, ended=ended)
        for length, (answer, ended) in zip(lengths, answers, strict=True)
    }
    return {length: text for length, text in texts.items() if text}
