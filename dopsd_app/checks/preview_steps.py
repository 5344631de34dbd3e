"""At which steps a run shows itself: often at first, for nobody waits a quarter of a run for a sign of life.

A roll-out is a training step's own: its states exist, and decoding them takes about a fifth of a step. A
sample takes up to half of one: the early ones come where they can be told from the base's pictures, and
without the health, which takes four times as many. All that is early is less than a hundredth of a usual run.
"""

from dopsd_app.config import TrainConfig

EARLY = (1, 2, 5, 10, 20, 50)  # each at most half of the next, and of `preview_every`
VISIBLE = 10  # steps before which a LoRA's pictures are the base's to the eye


def preview_steps(config: TrainConfig) -> list[int]:
    """The steps of whole previews: roll-out, samples and health."""
    every = config.preview_every
    return sorted({*range(every, config.steps + 1, every), config.steps}) if every else []


def early_steps(config: TrainConfig) -> list[int]:
    """The steps before the first whole preview whose roll-out is shown."""
    first = min(config.preview_every, config.steps)
    return [step for step in EARLY if 2 * step <= first]


def early_samples(config: TrainConfig) -> list[int]:
    """Those of them whose samples are shown too."""
    return [step for step in early_steps(config) if step >= VISIBLE]
