"""What a person types, in the order in which it was typed: requests of one tab may overtake each other.

Gradio sends a box's words when they change, and a second request may leave before the first is answered.
"""

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
        self._last: OrderedDict[tuple[str, str], tuple[float, str | None]] = OrderedDict()

    def keep(
        self, tab: str, place: str, moment: float, write: Callable[[], None], words: str | None = None
    ) -> None:
        """Calls `write`, unless later words were written, or the tab says again the words that it said last.

        What it says again, another tab may have changed meanwhile. Without `words` only the order counts.
        """
        with self._lock:
            before, last = self._last.get((tab, place), (0, None))
            if moment < before:
                return
            if words is None or words != last:
                write()
            self._last[tab, place] = moment, words
            self._last.move_to_end((tab, place))
            if len(self._last) > KEPT:
                self._last.popitem(last=False)


typing_order = TypingOrder()
