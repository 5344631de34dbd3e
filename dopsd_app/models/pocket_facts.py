"""The built-in base: Z-Image's architecture at 21 MB."""

from dataclasses import replace
from pathlib import Path

from dopsd_app.models.architecture import BaseModelFacts
from dopsd_app.models.sizes import read_sizes
from dopsd_app.models.z_image_facts import APACHE, Z_IMAGE

FOLDER = Path(__file__).parents[2] / "assets" / "pocket-turbo"
CONTEXT_AREA = (64**2, 64**2)  # pixels of the picture that its teacher sees

POCKET_TURBO = BaseModelFacts(
    label="pocket-turbo (built in)",
    description="Draws 64 x 64 creatures in 4 steps. A demonstration: trains in minutes without a GPU.",
    repository="",
    licence=APACHE,
    resolutions=(64, 64),
    architecture=Z_IMAGE,
    sizes=replace(read_sizes(Z_IMAGE, FOLDER, FOLDER / "vision_tower"), context_area=CONTEXT_AREA),
    native_steps=4,
    neutral_prompts=(
        "creature on a mint background",
        "a big creature in a meadow scene",
        "creature on the left in front of sea",
        "the creature in a night scene",
    ),
    judge=True,
    # Not Z-Image's, whose architecture it has: at another size, where its LoRAs would not load.
    known_as="pocket-turbo",
    kohya_name="pocket-turbo",
)
