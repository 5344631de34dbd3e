"""Tells pictures that the built-in base can learn from those that it cannot.

The built-in base draws one small world: a creature before one of eight backgrounds. They are known to the
colour, and whoever stands there leaves most of them uncovered: that is what is looked for.
"""

import numpy as np
from PIL import Image, ImageFilter

# As in `pocket/world.py`: top of the sky, bottom of the sky, ground (or None).
BACKGROUNDS = (
    ((196, 240, 222), (150, 218, 190), None),
    ((252, 214, 224), (238, 170, 188), None),
    ((250, 234, 196), (246, 222, 170), (214, 178, 118)),
    ((206, 220, 236), (226, 234, 244), (250, 252, 255)),
    ((24, 24, 56), (58, 52, 104), None),
    ((96, 92, 96), (122, 116, 118), (74, 70, 76)),
    ((176, 216, 250), (208, 232, 252), (120, 176, 84)),
    ((150, 226, 232), (176, 236, 238), (28, 128, 146)),
)
HORIZON = 0.7  # of the picture's height
SIDE = 64  # pixels: what the base draws, and so all that it could see of a picture
TOLERANCE = 16  # of 255, in each colour: compression and noise change as much
UNCOVERED = 0.5  # creatures: at least 0.63, and 0.57 after much blur and noise; 407 photographs: up to 0.49


def is_creature(picture: Image.Image) -> bool:
    """Whether an RGB picture can be one of the built-in base's world: half of it is one of its backgrounds.

    Advice only. A photograph is told by its colours, however small it was saved. It errs about a creature cut
    out so closely that it hides its background, and about things before a smooth wall of such a colour.
    """
    return background_share(picture) >= UNCOVERED


def background_share(picture: Image.Image) -> float:
    """How much of a picture has the colours of the one background that suits it best, from 0 to 1."""
    small = picture.resize((SIDE, SIDE), Image.Resampling.BOX)
    pixels = np.asarray(small.filter(ImageFilter.MedianFilter(3)), dtype=np.float32)
    differences = np.abs(pixels - _backgrounds()[:, :, None])
    return float((differences < TOLERANCE).all(-1).mean((1, 2)).max())


def _backgrounds() -> np.ndarray:
    """The colours of each row of each background: they change downwards only. (backgrounds, SIDE, 3)"""
    height = (np.arange(SIDE, dtype=np.float32)[:, None] + 0.5) / SIDE
    rows = []
    for top, bottom, ground in BACKGROUNDS:
        fade = np.minimum(height / (HORIZON if ground else 1), 1)
        sky = np.asarray(top, np.float32) * (1 - fade) + np.asarray(bottom, np.float32) * fade
        rows.append(np.where(height > HORIZON, np.asarray(ground, np.float32), sky) if ground else sky)
    return np.stack(rows)
