"""The bundled example sets: two creatures that the base has never seen, six pictures each."""

from pathlib import Path

import numpy as np
from PIL import Image

from dopsd_app.checks.judge.world import (
    BACKGROUND_WORDS,
    PLACE_WORDS,
    SIZES,
    Concept,
    Scene,
    draw,
    is_held_out,
)

SIDE = 256  # pixels
EXAMPLES = {
    "zorp": Concept(outline=6, body=7, second=11, pattern=1, frequency=0, eyes=0),
    "mibbit": Concept(outline=1, body=3, second=8, pattern=0, frequency=1, eyes=2),
}
TEMPLATES = (
    "{thing} on a {background} background",
    "{thing} in a {background} scene",
    "{thing} in front of {background}",
)


def write_examples(folder: Path) -> None:
    """Numbered pictures with a caption of the same name, and prompts for scenes that are not among them."""
    for seed, (name, concept) in enumerate(EXAMPLES.items()):
        if not is_held_out(concept):
            raise ValueError(f"{name} was part of the training: choose another concept.")
        rng = np.random.default_rng((7, seed))
        (folder / name).mkdir(parents=True, exist_ok=True)
        backgrounds = rng.permutation(len(BACKGROUND_WORDS))
        for number in range(6):
            scene = Scene(
                background=int(backgrounds[number]),
                place=int((number + seed) % 3),
                size=number % 2,
            )
            Image.fromarray(draw(concept, scene, SIDE)).save(folder / name / f"{number + 1}.png")
            thing = f"{SIZES[scene.size]} {name}" if number % 3 == 1 else name
            thing += f" {PLACE_WORDS[scene.place]}" if number % 3 == 2 else ""
            caption = TEMPLATES[number % 3].format(thing=thing, background=BACKGROUND_WORDS[scene.background])
            (folder / name / f"{number + 1}.txt").write_text(caption + "\n")
        prompts = [f"{name} on a {BACKGROUND_WORDS[b]} background" for b in backgrounds[6:]]
        prompts.append(f"a small {name} on the left in a {BACKGROUND_WORDS[backgrounds[0]]} scene")
        (folder / name / "prompts.txt").write_text("\n".join(prompts) + "\n")
