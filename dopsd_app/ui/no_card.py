"""What a person without a card can do who wants a base model of real size: said honestly, with prices."""

from dopsd_app.hub.access import this_space
from dopsd_app.hub.space_hardware import PRICED, SPACE_HARDWARE
from dopsd_app.ui import words


def ways_without_card(needed: int) -> str:
    """Where such a base model can be trained that needs a card of `needed` GB: a block of HTML."""
    rows = "".join(
        f"<tr><td>{words.text(hardware.name)}</td><td>{words.text(hardware.card)}, {hardware.memory} GB</td>"
        f"<td>${hardware.price:.2f} an hour</td></tr>"
        for hardware in SPACE_HARDWARE
        if hardware.memory >= needed
    )
    return (
        "<div class='need'>"
        f"<p>There is no NVIDIA card here. Use a computer with one of {needed} GB or more, or rent one by the"
        f" hour: {_duplicate()}</p>"
        f"<details><summary>What a GPU Space costs ({PRICED})</summary><table><thead><tr><th>Hardware</th>"
        f"<th>Card</th><th>Price</th></tr></thead><tbody>{rows}</tbody></table>"
        "<p class='hint'>It is paid for as long as it is awake: pause it when the run has finished.</p>"
        "</details></div>"
    )


def _duplicate() -> str:
    """How to come to a Space of one's own: by a link where it is known which one this is."""
    space = this_space()
    if space is None:
        return "a Space with a GPU, which runs this app for you. docs/spaces.md says how."
    address = f"https://huggingface.co/spaces/{space.id}?duplicate=true"
    return f"{words.link(address, 'duplicate this Space')} and choose a GPU, or give this one a GPU."
