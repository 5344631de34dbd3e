"""What a person should know before choosing a base model: what it is good at, licence, size, fit."""

import time
from functools import lru_cache

from dopsd_app.errors import KnownFailure
from dopsd_app.files import free_disk
from dopsd_app.hub.access import this_space
from dopsd_app.models.base_download import Offer, ask_hub, needs_fetching
from dopsd_app.models.catalog import BaseModelFacts, Lacking, find_facts, is_known, what_lacks
from dopsd_app.planning.machine import read_machine
from dopsd_app.planning.memory import least_card, least_gpu_memory
from dopsd_app.ui import words
from dopsd_app.ui.no_card import ways_without_card

HUB_REMEMBERED = 60  # seconds that the Hub's answer about a repository is good for


def base_facts(base: str, own: str, revision: str, *, ask: bool) -> str:
    """The facts of a base model of the catalog, or of a person's own in its place (a repository, a folder).

    Only where `ask` says so, or nothing is known yet, the Hub is asked: that can take seconds.
    """
    name, problems, offer, fetching = own or base, [], None, False
    try:
        fetching = needs_fetching(name, revision)
        if fetching and (ask or not is_known(name, revision)):
            offer = _offer(name, revision, round(time.monotonic() / HUB_REMEMBERED))
    except KnownFailure as error:
        problems.append(str(error))
    try:
        facts = find_facts(name, revision)
    except KnownFailure as error:
        if not problems:  # what is not known yet, since the Hub could not be asked, is a problem already
            problems.append(str(error))
        return _card("", [], problems)
    cells = [
        f"<b>Licence</b> {_licence(facts)}",
        _gate(facts) if facts.gated and fetching else "",
        _fit(facts) if facts.sizes.needs_card else "",
    ]
    if fetching:
        cells.append(_download(offer, what_lacks(name, revision, "auto", facts, facts.sizes)))
    elif not problems:
        cells.append(f"<b>Ready</b>{'' if facts.repository or own else ' it comes with the program'}")
    machine, needs_card = read_machine(), facts.sizes.needs_card
    if needs_card and machine.gpus and not machine.card():
        problems.append(machine.why_no_card())
    card = _card(facts.description, cells, problems)
    return card + ways_without_card(least_card(facts.sizes)) if needs_card and not machine.gpus else card


def _card(description: str, cells: list[str], problems: list[str]) -> str:
    inner = "".join(f"<span>{cell}</span>" for cell in cells if cell)
    about = f"<p class='good'>{words.text(description)}</p>" if description else ""
    reasons = words.lines(problems, "problem")
    return f"<div class='model'>{about}<div class='facts'>{inner}</div>{reasons}</div>"


def _licence(facts: BaseModelFacts) -> str:
    known = facts.licence
    return words.link(known.link, known.name) if known.name else "not said: see where the model is from"


def _gate(facts: BaseModelFacts) -> str:
    page = words.link(f"https://huggingface.co/{facts.repository}", "on the Hub")
    if this_space() is not None:  # which reads with nobody's token
        return f"<b>Gated</b> by terms {page}: a Space cannot fetch it"
    return f"<b>Gated</b> accept its terms {page} first, then sign in by <code>hf auth login</code>"


def _download(offer: Offer | None, lacks: Lacking | None) -> str:
    """What will be fetched, and what the disk has; sizes are the Hub's, or what it answered the last time."""
    if offer is None:
        size = f": {words.disk(lacks.size)}" if lacks and lacks.size else ""
        return f"<b>From the Hub</b> fetched when it is needed{size}"
    rest = f", {words.disk(offer.missing)} of it still to come" if offer.missing < offer.size else ""
    free = words.disk(free_disk(offer.folder))
    return f"<b>From the Hub</b> {words.disk(offer.size)}, once, when it is needed{rest}; {free} free there"


@lru_cache(maxsize=8)
def _offer(name: str, revision: str, moment: int) -> Offer:
    return ask_hub(name, revision)


def _fit(facts: BaseModelFacts) -> str:
    machine, needed = read_machine(), f"{least_card(facts.sizes)} GB"
    card = machine.card()
    if card is None:
        return f"<b>Memory</b> needs an NVIDIA card with {needed} or more"
    fits = "fits" if least_gpu_memory(facts.sizes) <= card.memory else "does not fit"
    return f"<b>Memory</b> {needed} or more, {fits} {words.text(card.name)}"
