"""What a person types, in the order in which it was typed: requests of one tab may overtake each other."""

import threading
from collections import OrderedDict
from collections.abc import Callable

import gradio as gr

KEPT = 1000  # tabs and boxes whose last moment is remembered

# Runs in the browser when the values of the boxes are read: the last one becomes the moment.
STAMP = "(...values) => [...values.slice(0, -1), performance.timeOrigin + performance.now()]"


def moment() -> gr.Number:
    """The last input of an event with `js=STAMP`: milliseconds since 1970 by the browser's clock."""
    return gr.Number(visible=False)


class TypingOrder:
    """Lets no older words replace newer ones that the same tab sent from the same place.

    A tab is a session of Gradio's; two tabs are not ordered, for two computers' clocks may differ.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._moments: OrderedDict[tuple[str, str], float] = OrderedDict()

    def keep(self, tab: str, place: str, moment: float, write: Callable[[], None]) -> None:
        """Calls `write`, unless words of a later moment were written; one at a time."""
        with self._lock:
            if moment < self._moments.get((tab, place), 0):
                return
            write()
            self._moments[tab, place] = moment
            self._moments.move_to_end((tab, place))
            if len(self._moments) > KEPT:
                self._moments.popitem(last=False)
