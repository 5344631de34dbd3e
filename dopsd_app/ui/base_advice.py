"""Which base models can learn a draft's pictures, where the chosen one cannot."""

from dataclasses import dataclass

import gradio as gr
from gradio.blocks import Block

from dopsd_app.data.drafts import Draft
from dopsd_app.models.architecture import BaseModelFacts
from dopsd_app.models.catalog import CATALOG, what_lacks
from dopsd_app.planning.machine import read_machine
from dopsd_app.planning.memory import least_card, least_gpu_memory
from dopsd_app.ui import words
from dopsd_app.ui.base_choice import suited_base, unsuited_pictures, unsuited_sources
from dopsd_app.ui.no_card import ways_without_card

# Of what is fetched, the teacher's eyes included, until the Hub was asked.
DOWNLOADS = {"z-image-turbo": "34 GB", "flux2-klein-4b": "16 GB", "flux2-klein-9b": "35 GB"}
REAL = tuple(name for name, facts in CATALOG.items() if facts.repository)


@dataclass(frozen=True)
class BaseAdvice:
    """What is wrong with the chosen base model, and a button for each that suits."""

    box: gr.Column
    why: gr.HTML
    use: dict[str, gr.Button]

    @property
    def outputs(self) -> list[Block]:
        """What `show` fills."""
        return [self.box, self.why, *self.use.values()]

    def show(self, draft: Draft) -> dict:
        """The other base models, with what each needs; hidden where the chosen one can learn the pictures."""
        why = unsuited_sources(draft) or unsuited_pictures(draft)
        if not why:
            return {self.box: gr.Column(visible=False)}
        suited = suited_bases(draft)
        needs = "".join(
            f"<li><b>{words.text(CATALOG[name].label)}</b> {_needs(name)}</li>" for name in suited
        )
        first = suited_base(draft)
        return {
            self.box: gr.Column(visible=True),
            self.why: words.lines([why], "problem")
            + f"<ul class='bases'>{needs}</ul>"
            + _without_card(first),
            **{
                button: gr.Button(visible=name in suited, variant="primary" if name == first else "secondary")
                for name, button in self.use.items()
            },
        }


def base_advice() -> BaseAdvice:
    """Lays it out."""
    with gr.Column(visible=False, elem_id="base-advice") as box:
        why = gr.HTML(elem_id="unsuited")
        with gr.Row(elem_classes="buttons"):
            use = {name: gr.Button(f"Use {CATALOG[name].label}", elem_id=f"use-{name}") for name in REAL}
    return BaseAdvice(box, why, use)


def suited_bases(draft: Draft) -> list[str]:
    """The catalog's names of the base models that can learn photographs such as the draft's."""
    return [name for name in REAL if CATALOG[name].architecture.edits or not draft.sources]


def _needs(name: str) -> str:
    """What a base model takes: its download, a card, and the owner's leave where that must be asked for."""
    facts = CATALOG[name]
    lacks = what_lacks(name, "", "auto", facts, facts.sizes)
    size = f"{words.disk(lacks.size) if lacks and lacks.size else DOWNLOADS[name]} to fetch, once"
    needs = [size if lacks else "on this computer already", _card(facts)]
    if facts.gated and lacks:
        needs.append("its terms must be accepted on the Hub first")
    return words.text(", ".join(needs))


def _without_card(name: str) -> str:
    return "" if read_machine().gpus else ways_without_card(least_card(CATALOG[name].sizes))


def _card(facts: BaseModelFacts) -> str:
    card = read_machine().card()
    needed = f"a card of {least_card(facts.sizes)} GB or more"
    if card is None:
        return needed
    return f"{needed} ({'fits' if least_gpu_memory(facts.sizes) <= card.memory else 'yours is smaller'})"
