"""What happens to pictures before somebody trains on them: blur, noise, compression."""

from io import BytesIO

import numpy as np
from PIL import Image, ImageFilter

# As people's pictures are: here about as far from flawless as what the base itself draws from a caption.
WORN = {"blur": 0.7, "noise": 10, "quality": 50}


def wear(
    picture: np.ndarray, rng: np.random.Generator, blur: float, noise: float, quality: int
) -> np.ndarray:
    """A picture (H, W, 3) after a blur of so many pixels, noise of that deviation, and JPEG."""
    blurred = np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(blur)), dtype=np.float32)
    noisy = (blurred + rng.normal(0, noise, blurred.shape)).clip(0, 255).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file).convert("RGB"))


def wear_at_random(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Anything from almost nothing to what nearly hides the eyes."""
    return wear(picture, rng, rng.uniform(0, 1), rng.uniform(0, 16), int(rng.integers(40, 96)))
