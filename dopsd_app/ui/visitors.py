"""What everybody may see: the product's name, and on a Space what it does and how to get one's own."""

from dataclasses import dataclass

import gradio as gr

from dopsd_app.hub.access import Space, this_space
from dopsd_app.planning.machine import read_machine
from dopsd_app.ui import words

NO_ZERO_GPU = (
    "This app does not support ZeroGPU: it lends a GPU for a minute at a time, and training takes longer."
    " Choose CPU hardware in the Space's settings, where the built-in base trains, or a GPU of the Space's"
    " own."
)
PROMISE = "Teach a few-step image model your dog, face, product or style, and keep its few steps."


@dataclass(frozen=True)
class Bar:
    """What stands above everything, in one line."""

    machine: gr.HTML  # filled by `describe_machine`
    to_runs: gr.Button  # hidden from visitors


def bar(title: str) -> Bar:
    """Lays out the product's name, the machine, the way to the runs and on a Space the sign-in."""
    space = this_space()
    with gr.Row(elem_classes="topbar", equal_height=True):
        gr.HTML(f"<header><h1>{title}</h1></header>", min_width=60)
        machine = gr.HTML(elem_id="machine", min_width=60)
        to_runs = gr.Button(
            "Runs", size="sm", elem_id="to-runs", scale=0, min_width=80, visible=space is None
        )
        if space and space.sign_in:
            gr.LoginButton(elem_id="sign-in", size="sm", scale=0, min_width=200)
    return Bar(machine, to_runs)


def describe_machine() -> str:
    """What is there to train on, in a few words; asking the driver of a card takes a second."""
    machine = read_machine()
    if card := machine.card():
        sentence = f"{card.name}, {words.memory(card.memory)}"
    else:
        cores = words.count(machine.cores, "processor core")
        missing = f"{machine.gpus[0].name} cannot be used" if machine.gpus else "No NVIDIA card"
        sentence = f"{missing}: {cores}, {words.memory(machine.memory)}"
    return f"<p class='machine'>{words.text(sentence)}</p>"


def welcome(space: Space, refusal: str) -> str:
    """The page of a visitor, who sees nobody's pictures; `refusal` is why a signed-in one may not."""
    if refusal:
        whose = words.message(refusal)
    elif space.sign_in:
        whose = f"This Space belongs to {words.text(space.owner)}. If that is you, sign in at the top."
    else:
        whose = (
            f"This Space belongs to {words.text(space.owner)}. If that is you: this Space has no sign-in yet."
            " Set <code>hf_oauth: true</code> in its README.md."
        )
    return (
        f"<div class='visitor'><h2>Draw your own subject in 4 to 8 steps</h2><p>{PROMISE}</p>"
        "<p>The best open image models of today draw a picture in 4 to 8 steps, and ordinary LoRA training"
        " can spoil that. Here the model walks its own few steps from your caption, and is corrected by"
        " itself seeing caption and picture. So it learns your subject and stays as fast as it was.</p>"
        "<p>Give 4 to 200 pictures with captions, see what the teacher sees, watch the roll-outs while it"
        " trains, try the result and publish it.</p>"
        f"<p>{whose}</p>"
        f"<p class='card-link'><a href='https://huggingface.co/spaces/{words.text(space.id)}?duplicate=true'"
        " target='_blank' rel='noopener'>Duplicate this Space</a> to have one of your own, where only you see"
        " your pictures.</p></div>"
    )


def limits(space: Space) -> str:
    """What works on this Space and what does not, for its owner."""
    if space.zero_gpu:
        sentence = NO_ZERO_GPU
    elif not read_machine().gpus:
        sentence = (
            "This Space has no GPU: the built-in base works, it trains on the processor; models of real size"
            " do not."
        )
    else:
        sentence = (
            "A sleep time counts from the last visit, so set none while a run is at work. What is on this"
            " Space's disk is lost when it restarts: publish or download what you want to keep."
        )
    return f"<p class='advice'>{sentence}</p>"
