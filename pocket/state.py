"""What a stage keeps on disk between runs: one file with weights, optimizer, step and seconds so far."""

import os
import time
from pathlib import Path

import torch

SAVE_EVERY = 150  # seconds


class Stage:
    """The clock and the checkpoint of one training stage.

    `objects` maps names to anything with state_dict and load_state_dict. The learning rate follows the
    fraction of the minutes that are spent, over all runs of the stage; a step's pictures follow from its
    number alone.
    """

    def __init__(self, path: Path, minutes: float, objects: dict):
        self.path, self.minutes, self.objects = path, minutes, objects
        self.step, self.seconds, self.pictures = 0, 0.0, 0
        if path.exists():
            state = torch.load(path, map_location="cpu", weights_only=True)
            for name, thing in objects.items():
                thing.load_state_dict(state[name])
            self.step, self.seconds, self.pictures = state["step"], state["seconds"], state["pictures"]
            print(f"{path.name}: resumed at step {self.step}, {self.seconds / 60:.1f} minutes", flush=True)
        self.started = self.saved = time.monotonic()
        self.seconds_before = self.seconds

    @property
    def progress(self) -> float:
        """Fraction of the stage's minutes that are spent, 0 to 1."""
        return min(self.seconds / (60 * self.minutes), 1.0)

    def steps(self, batch_size: int):
        """Yield step numbers until the time is up, saving every few minutes and at the end."""
        while self.progress < 1:
            yield self.step
            self.step += 1
            self.pictures += batch_size
            self.seconds = self.seconds_before + time.monotonic() - self.started
            if time.monotonic() - self.saved > SAVE_EVERY or self.progress >= 1:
                self.save()

    def save(self) -> None:
        """Replace the checkpoint whole, so that a kill never leaves half of one."""
        state = {name: thing.state_dict() for name, thing in self.objects.items()}
        state |= {"step": self.step, "seconds": self.seconds, "pictures": self.pictures}
        torch.save(state, self.path.with_suffix(".part"))
        os.replace(self.path.with_suffix(".part"), self.path)
        self.saved = time.monotonic()


def warm_then_cool(progress: float, warm: float = 0.02, floor: float = 0.02) -> float:
    """Learning-rate factor: a short warm-up, flat until 60 % of the time, then linear down to `floor`."""
    return min(1.0, (progress + 1e-3) / warm, max(floor, (1 - progress) / 0.4))


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast() -> torch.autocast:
    """bfloat16 on CUDA; on processors without tiles for it, float32 is the faster one."""
    return torch.autocast(device().type, torch.bfloat16, enabled=device().type == "cuda")
