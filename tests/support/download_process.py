"""A process that fetches, as a worker does: one JSON line in for each call, one out for its result.

huggingface_hub reads its environment when it is imported, so that the tests' own process, offline, cannot.
Each call may name a cache of its own.
"""

import json
import sys
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from huggingface_hub import constants

from dopsd_app.errors import KnownFailure
from dopsd_app.models import base_download, captioner_download, catalog, download
from dopsd_app.models.captioner_facts import AREAS, CAPTIONERS

download.WAITS = (0.05, 0.05, 0.05)
download.SILENCE_SECONDS = 1.0
download.POLL_SECONDS = 0.05


def fetch(name: str, revision: str = "", stop_after: int = 0) -> dict:
    """Fetches; with `stop_after` only until so many bytes are here. The steps it told, and where all is."""
    steps, begun = [], time.monotonic()
    with closing(base_download.fetch_base_model(name, revision)) as progress:
        for step in progress:
            steps.append(asdict(step))
            if stop_after and step.done >= stop_after:
                stopping = time.monotonic()
                break
        else:
            return {"steps": steps, "seconds": time.monotonic() - begun, **places(name, revision)}
    return {"steps": steps, "closed_in": time.monotonic() - stopping}


def places(name: str, revision: str = "") -> dict:
    place = catalog.find_base_model(name, revision)
    return {"folder": str(place.folder), "eyes": str(place.vision_tower), "commit": place.commit}


def ask(name: str, revision: str = "") -> dict:
    offer = base_download.ask_hub(name, revision)
    facts = catalog.find_facts(name, revision)
    return {**asdict(offer), "folder": str(offer.folder), "facts": asdict(facts)}


def facts(name: str, revision: str = "") -> dict:
    return asdict(catalog.find_facts(name, revision))


def kind(name: str, revision: str = "") -> str:
    return catalog.model_family(name, revision)


def fetch_captioner(name: str) -> dict:
    """Fetches what writes captions; what lacked before and after, and where it is."""
    captioner = next(each for each in CAPTIONERS if each.repository == name)
    lacking = captioner_download.lacking_bytes(captioner)
    steps = [asdict(step) for step in captioner_download.fetch_captioner(captioner)]
    place = captioner_download.find_captioner(captioner)
    assert place is not None
    after = captioner_download.lacking_bytes(captioner)
    return {"steps": steps, "lacking": lacking, "after": after, **asdict(place)}


def write_captions(name: str, gigabytes: int) -> list[str]:
    """Does the job of this folder, on a processor with so much memory; its states."""
    from dopsd_app import caption
    from dopsd_app.jobs import worker
    from dopsd_app.jobs.events import read_events
    from dopsd_app.jobs.job import Job
    from dopsd_app.planning.machine import Machine
    from dopsd_app.torch_build import installed_torch

    AREAS[False] = 64**2, 96**2  # looking takes most of the time
    memory = gigabytes * 2**30
    caption.read_machine = lambda: Machine((), installed_torch(), memory, memory, 2)
    job = Job(Path(name))
    worker.work(job)
    return [getattr(event, "phase", type(event).__name__) for event in read_events(job.events_file)]


def set_room(free: int) -> None:
    """So many bytes are free on every disk."""
    download.free_disk = lambda folder: free


if __name__ == "__main__":
    for line in sys.stdin:
        call = json.loads(line)
        constants.HF_HUB_CACHE = str(Path(call["home"]) / "hub")
        constants.HF_ASSETS_CACHE = str(Path(call["home"]) / "assets")
        try:
            answer = {"result": globals()[call["name"]](**call["arguments"])}
        except KnownFailure as error:
            answer = {"error": str(error), "detail": getattr(error, "detail", "")}
        print(json.dumps(answer, default=str), flush=True)
