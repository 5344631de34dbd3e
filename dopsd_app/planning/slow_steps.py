"""Steps that suddenly take far longer than those before, and what is likely to be the cause."""

import statistics
import sys
from collections import deque

from dopsd_app.gpus import list_gpus
from dopsd_app.processor import average_load, count_cores

SLOW = 3.0  # times the median of the steps before
LOOKED_AT, LEAST = 20, 5  # steps that the median is of: at the most, and at least
CROWDED = 0.5  # other programs' threads for each core, from which on they are named as the cause
FULL = 300 * 2**20  # bytes that are free on a card of which another program takes what it can get


class SlowSteps:
    """Watches the seconds of a training's steps."""

    def __init__(self, on_card: bool):
        self.on_card = on_card
        self.seconds: deque[float] = deque(maxlen=LOOKED_AT)
        self.told = False

    def judge(self, seconds: float) -> str | None:
        """A sentence when steps become slow, an empty one when they no longer are; else None."""
        usual = statistics.median(self.seconds) if len(self.seconds) >= LEAST else 0.0
        slow = bool(usual) and seconds > SLOW * usual
        if not slow:
            # A slow one would make the next slow ones usual.
            self.seconds.append(seconds)
        if slow == self.told:
            return None
        self.told = slow
        if not slow:
            return ""
        return f"A step took {seconds / usual:.0f} times as long as those before. {self._cause()}"

    def _cause(self) -> str:
        others = average_load() - (1 if self.on_card else count_cores())
        if others >= CROWDED * count_cores():
            return "Other programs use the processor: close them."
        if not self.on_card:
            return "The computer may be short of memory, or slow down because it is hot."
        free = min((gpu.free_memory for gpu in list_gpus()), default=0)
        if sys.platform == "win32" and free < FULL:
            return (
                "The card's memory is full, and Windows moves a part of it to the computer's own, which is"
                " many times slower: close other programs that use the card."
            )
        return "Another program may use the card, or it slows down because it is hot."
