"""What a person should know before choosing a base model: what it is good at, licence, size, fit."""

import time
from functools import lru_cache

from dopsd_app.catalog import CATALOG, BaseModelError, BaseModelFacts, download_size, find_base_model
from dopsd_app.machine import free_disk, read_machine
from dopsd_app.runs import default_runs_dir
from dopsd_app.ui import words

HUB_REMEMBERED = 600  # seconds that the Hub's answer about a repository's size is good for


def base_facts(base: str, folder: str, *, ask_hub: bool) -> str:
    """The facts of a base model of the catalog, which may lie in a folder of the person's own.

    Only where `ask_hub` says so, the Hub is asked for the size of the download: that can take seconds.
    """
    facts = CATALOG[base]
    licence = words.link(facts.licence_link, facts.licence_name)
    cells, problems = [f"<b>Licence</b> {licence}"], []
    if facts.repository:
        cells += [_download(facts, ask_hub), _fit(facts)]
        try:
            find_base_model(folder or base)
            cells.append("<b>Ready</b>")
        except BaseModelError as error:
            problems.append(str(error))
    else:
        cells.append("<b>Ready</b> it comes with the program")
    inner = "".join(f"<span>{cell}</span>" for cell in cells)
    description = f"<p class='good'>{words.text(facts.description)}</p>"
    said = words.lines(problems, "problem")
    return f"<div class='model'>{description}<div class='facts'>{inner}</div>{said}</div>"


def _download(facts: BaseModelFacts, ask_hub: bool) -> str:
    free = f"{words.disk(free_disk(default_runs_dir()))} free on this disk"
    if not ask_hub:
        return f"<b>Disk</b> {free}"
    size = _download_size(facts.repository, round(time.monotonic() / HUB_REMEMBERED))
    shown = words.disk(size) if size else "size unknown: the Hub cannot be asked now"
    return f"<b>On the Hub</b> {shown}, {free}"


@lru_cache(maxsize=8)
def _download_size(repository: str, moment: int) -> int | None:
    return download_size(repository)


def _fit(facts: BaseModelFacts) -> str:
    machine, needed = read_machine(), words.memory(facts.gpu_memory)
    if not machine.gpus or not machine.torch_has_cuda:
        return f"<b>Memory</b> needs an NVIDIA card with {needed} or more: none can be used here"
    card = machine.gpus[0]
    fits = "fits" if facts.gpu_memory <= card.memory else "does not fit"
    return f"<b>Memory</b> {needed} or more, {fits} {words.text(card.name)}"
