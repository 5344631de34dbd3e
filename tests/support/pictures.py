"""Pictures made of numbers."""

import numpy as np
from PIL import Image


def make_picture(seed: int, width: int = 32, height: int = 32) -> Image.Image:
    """A picture of coarse random colours."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.NEAREST)
