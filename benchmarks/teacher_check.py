"""Is the teacher check's score right? Its verdict against the truth, which the built-in world's judge counts.

Creatures that the base never saw, four pictures each, are checked by the built-in base's teacher and by worse
ones, made from it by mixing its conditioning with that of noise, or of other creatures. The
truth is how many more of the creature's attributes show in 12 pictures that a teacher draws with the creature
in view than in 12 that it draws with others in view. Against the student's pictures the same is counted too,
but a teacher that sees nothing agrees with a creature by luck in up to an attribute and a half more, or less.

    python -m benchmarks.teacher_check
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cosine_similarity

from benchmarks.record import save_result
from benchmarks.teacher_scores import Outcome, Scoring, count_verdicts, spread, summarize
from dopsd_app.checks.judge.classifier import CONCEPT, judge, load_judge
from dopsd_app.checks.judge.world import (
    BACKGROUND_WORDS,
    PLACE_WORDS,
    SIZES,
    Concept,
    Scene,
    draw,
    random_concept,
    random_scene,
)
from dopsd_app.checks.teacher_check import CHECKED, colours_of, control_picture
from dopsd_app.config import TrainConfig, load_preset, make_config
from dopsd_app.data.pictures import load_picture
from dopsd_app.jobs.card import ask_for_card, read_holder
from dopsd_app.jobs.drawing import CheckRequest, ask
from dopsd_app.method import randomness
from dopsd_app.method.rollout import sample
from dopsd_app.models.catalog import ASSETS
from dopsd_app.models.load import load_base_model
from dopsd_app.models.protocol import NO_PICTURES, BaseModel, Conditioning, Pictures
from dopsd_app.models.vision_language import run_vision_tower
from pocket.captions import nonsense_name
from pocket.examples import TEMPLATES
from pocket.judge import agreement

NOISES = 3  # from which each picture is drawn for the truth; the check itself sees the first
LEVELS = (0.25, 0.5, 0.75)  # how much of a worse teacher's conditioning is of something else
Degrade = Callable[[list[Conditioning]], list[Conditioning]]


@dataclass(frozen=True)
class Case:
    """One creature: its pictures, and the student's view of it, which no teacher changes."""

    concept: Concept
    crops: list[Image.Image]
    captions: list[str]
    student: list[Image.Image]
    student_attributes: float  # of six, how many its pictures show


@dataclass(frozen=True)
class Teacher:
    """A teacher's conditionings of the creature's pictures, and of other creatures'."""

    own: list[Conditioning]
    of_others: list[Conditioning]
    degrade: Degrade | None = None  # of its conditionings of controls; None: they are whole
    student: list[Conditioning] | None = None  # None: the student that the caption makes


class Lab:
    """The built-in base with all that is measured with it."""

    def __init__(self, config: TrainConfig):
        self.config, self.judge = config, load_judge()
        self.base_model: BaseModel = load_base_model(config)
        self.base_model.load_encoders()
        self.base_model.load_transformer()

    def draw(self, contexts: list[Conditioning], noises: int = 1) -> list[Image.Image]:
        """The four pictures from the check's own noise, then those from further noises."""
        shape = self.base_model.latent_shape(64, 64)
        noise = [
            randomness.draw_noise(shape, self.config.seed, number, index, randomness.PREVIEW)
            for number in range(noises)
            for index in range(len(contexts))
        ]
        sigmas = self.base_model.sigmas(self.config.num_inference_steps, 64, 64)
        return self.base_model.decode(sample(self.base_model, contexts * noises, torch.stack(noise), sigmas))

    def attributes(self, pictures: list[Image.Image], concept: Concept) -> float:
        """How many of the creature's six attributes a picture shows, on average."""
        shown = agreement(judge(pictures, self.judge), concept)
        return sum(shown[name] for name in CONCEPT)

    def encode(self, pictures: list[Image.Image], captions: list[str]) -> list[Conditioning]:
        return [
            self.base_model.encode(Pictures(picture), caption, "teacher")
            for picture, caption in zip(pictures, captions, strict=True)
        ]

    def features(self, pictures: list[Image.Image]) -> dict[str, Tensor]:
        """Kinds to choose from; "eyes" is what `picture_features` gives, "pixels" are 8 x 8 mean colours."""
        outputs = [
            run_vision_tower(self.base_model.vision_tower, self.base_model.image_processor, picture)
            for picture in pictures
        ]
        merged = torch.stack([output.pooler_output for output in outputs])  # (N, tokens, D)
        patches = torch.stack([output.last_hidden_state for output in outputs])
        return {
            "eyes": merged.mean(1),
            "eyes by position": merged.flatten(1),
            "eyes before the merger": patches.mean(1),
            "colours": torch.stack([colours_of(picture) for picture in pictures]).float(),
            "pixels": torch.stack([_pixels(picture) for picture in pictures]),
        }


def _pixels(picture: Image.Image) -> Tensor:
    small = picture.resize((8, 8), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(small, dtype=np.float32).ravel())


def make_case(lab: Lab, concept: Concept, rng: np.random.Generator) -> Case:
    """Four pictures with captions, as the bundled examples have them."""
    name, backgrounds = nonsense_name(rng), rng.permutation(len(BACKGROUND_WORDS))
    crops, captions = [], []
    for number in range(CHECKED):
        scene = Scene(background=int(backgrounds[number]), place=number % 3, size=number % 2)
        crops.append(Image.fromarray(draw(concept, scene)))
        captions.append(_caption(name, scene, number))
    student = lab.draw(
        [lab.base_model.encode(NO_PICTURES, caption, "student") for caption in captions], NOISES
    )
    return Case(concept, crops, captions, student[:CHECKED], lab.attributes(student, concept))


def _caption(name: str, scene: Scene, number: int) -> str:
    thing = f"{SIZES[scene.size]} {name}" if number % 3 == 1 else name
    thing += f" {PLACE_WORDS[scene.place]}" if number % 3 == 2 else ""
    return TEMPLATES[number % 3].format(thing=thing, background=BACKGROUND_WORDS[scene.background])


def control_candidates(lab: Lab, case: Case, rng: np.random.Generator) -> dict[str, list[Image.Image]]:
    """What could be shown to the teacher instead of the picture."""
    return {
        "another creature": other_creatures(lab.base_model, case.crops),
        "tiles shuffled": [shuffle_tiles(picture, rng) for picture in case.crops],
        "grey": [control_picture(picture) for picture in case.crops],
        "paired wrongly": case.crops[1:] + case.crops[:1],
    }


def other_creatures(base_model: BaseModel, crops: list[Image.Image]) -> list[Image.Image]:
    """A picture of another creature for each: from the bundled example set that is less like all of these."""
    sets = [
        [load_picture(path) for path in sorted(folder.glob("*.png"))]
        for folder in sorted((ASSETS / "examples").iterdir())
    ]

    def mean_features(pictures: list[Image.Image]) -> Tensor:
        return torch.stack([base_model.picture_features(picture).mean(0) for picture in pictures]).mean(0)

    concept = mean_features(crops)
    strangest = min(sets, key=lambda pictures: cosine_similarity(mean_features(pictures), concept, 0))
    return [picture.resize((64, 64), Image.Resampling.LANCZOS) for picture in strangest[:CHECKED]]


def shuffle_tiles(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture's 4 x 4 tiles in another order."""
    tiles = np.asarray(picture).reshape(4, 16, 4, 16, 3).swapaxes(1, 2).reshape(16, 16, 16, 3)
    shuffled = tiles[rng.permutation(16)].reshape(4, 4, 16, 16, 3).swapaxes(1, 2)
    return Image.fromarray(shuffled.reshape(64, 64, 3))


def mixing(others: list[Conditioning], level: float) -> Degrade:
    """A teacher whose conditioning holds less of a picture, and instead something of the others'."""

    def degrade(own: list[Conditioning]) -> list[Conditioning]:
        return [
            Conditioning((1 - level) * one.prompt_embeds + level * other.prompt_embeds)
            for one, other in zip(own, others, strict=True)
        ]

    return degrade


def make_teachers(lab: Lab, case: Case, rng: np.random.Generator) -> dict[str, Teacher]:
    """The base's own teacher, and worse ones."""

    def strangers() -> list[Conditioning]:
        concepts = [random_concept(rng, held_out=True) for _ in case.crops]
        pictures = [Image.fromarray(draw(concept, random_scene(rng))) for concept in concepts]
        return lab.encode(pictures, case.captions)

    pixels = rng.integers(0, 256, (CHECKED, 64, 64, 3), dtype=np.uint8)
    noise = lab.encode([Image.fromarray(picture) for picture in pixels], case.captions)
    own, others, wrong = lab.encode(case.crops, case.captions), strangers(), strangers()
    teachers = {"as it is": Teacher(own, others)}
    for name, mixed_in in (("noise", noise), ("other creatures", wrong)):
        for level in LEVELS:
            degrade = mixing(mixed_in, level)
            teachers[f"{level:.0%} {name}"] = Teacher(degrade(own), degrade(others), degrade)
    teachers["sees other creatures"] = Teacher(wrong, others)
    # Any picture brings this one the caption, and so the right background, which its student does not draw.
    without_caption = [lab.base_model.encode(NO_PICTURES, "", "student") for _ in case.captions]
    teachers["the same, its student has no caption"] = Teacher(wrong, others, student=without_caption)
    caption_alone = [lab.base_model.encode(NO_PICTURES, caption, "student") for caption in case.captions]
    teachers["sees no picture"] = Teacher(caption_alone, caption_alone)
    return teachers


def run_case(lab: Lab, case: Case, rng: np.random.Generator) -> dict[str, Outcome]:
    """Every teacher on one creature."""
    shown = control_candidates(lab, case, rng)
    encoded = {name: lab.encode(pictures, case.captions) for name, pictures in shown.items()}
    fixed = {"crops": lab.features(case.crops), "student": lab.features(case.student)}
    fixed |= {f"shown {name}": lab.features(pictures) for name, pictures in shown.items()}
    intact = {f"control {name}": lab.features(lab.draw(control)) for name, control in encoded.items()}
    outcomes = {}
    for name, teacher in make_teachers(lab, case, rng).items():
        pictures = lab.draw(teacher.own, NOISES)
        attributes = lab.attributes(pictures, case.concept)
        features = fixed | intact | {"teacher": lab.features(pictures[:CHECKED])}
        if teacher.degrade:
            features |= {
                f"control {name}": lab.features(lab.draw(teacher.degrade(control)))
                for name, control in encoded.items()
            }
        if teacher.student:
            features["student"] = lab.features(lab.draw(teacher.student))
        outcomes[name] = Outcome(
            truth=attributes - lab.attributes(lab.draw(teacher.of_others, NOISES), case.concept),
            over_student=attributes - case.student_attributes,
            features=features,
        )
    return outcomes


def no_creatures(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Pictures (4, 64, 64, 3) of what this base cannot draw at all: its teacher can show colours at most."""
    ends = rng.integers(0, 256, (2, CHECKED, 1, 1, 3))
    fade = np.linspace(0, 1, 64)[:, None, None]
    return {
        "noise": rng.integers(0, 256, (CHECKED, 64, 64, 3)),
        "patches": rng.integers(0, 256, (CHECKED, 4, 4, 3)).repeat(16, axis=1).repeat(16, axis=2),
        "gradients": (ends[0] * (1 - fade) + ends[1] * fade).repeat(64, axis=2),
    }


def score_no_creatures(lab: Lab, count: int, rng: np.random.Generator) -> dict[str, dict]:
    """Scores and verdicts of the base's own teacher on such pictures."""
    captions = [f"zorp on a {background} background" for background in BACKGROUND_WORDS[:CHECKED]]
    student = lab.features(
        lab.draw([lab.base_model.encode(NO_PICTURES, caption, "student") for caption in captions])
    )
    product, scores = Scoring(), {}
    for _ in range(count):
        for name, pixels in no_creatures(rng).items():
            crops = [Image.fromarray(picture.astype(np.uint8)) for picture in pixels]
            shown = [control_picture(picture) for picture in crops]
            teacher, control = (lab.features(lab.draw(lab.encode(rows, captions))) for rows in (crops, shown))
            features = {"crops": lab.features(crops), "student": student, "teacher": teacher}
            features |= {f"shown {product.control}": lab.features(shown)}
            features |= {f"control {product.control}": control}
            scores.setdefault(name, []).append(product(Outcome(0.0, 0.0, features)))
    return {
        name: {"score": spread(np.array(values)), "verdicts": count_verdicts(np.array(values))}
        for name, values in scores.items()
    }


def time_check(config: TrainConfig) -> dict[str, dict[str, float]]:
    """Seconds from asking for a check to its last file, and those on the processor: cold, then warm."""
    seconds, spent = {}, 0.0
    with tempfile.TemporaryDirectory() as name:
        runs_dir = Path(name)
        for state in ("cold", "warm"):
            started = time.perf_counter()
            drawing = ask(runs_dir, CheckRequest(config, ASSETS / "examples" / "zorp"))
            while drawing.status.busy:
                time.sleep(0.02)
            if drawing.status.state != "finished":
                raise RuntimeError(drawing.status.reason)
            wall = time.perf_counter() - started
            before, spent = spent, sum(psutil.Process(read_holder().pid).cpu_times()[:2])
            seconds[state] = {"wall": round(wall, 2), "processor": round(spent - before, 2)}
        while read_holder():
            ask_for_card()
            time.sleep(0.02)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--concepts", type=int, default=48)
    arguments = parser.parse_args()
    config = make_config(load_preset("pocket").settings)
    seconds = time_check(config)
    lab, rng, cases = Lab(config), np.random.default_rng(2028), []
    for number in range(arguments.concepts):
        case = make_case(lab, random_concept(rng, held_out=True), rng)
        cases.append(run_case(lab, case, rng))
        print(number + 1, {name: round(o.truth, 2) for name, o in cases[-1].items()}, flush=True)
    result = {
        "concepts": len(cases),
        "seconds": seconds,
        **summarize(cases),
        "pictures_of_no_creature": score_no_creatures(lab, len(cases) // 2, rng),
    }
    path = save_result("teacher_check", result)
    print(f"Saved {path.name}")


if __name__ == "__main__":
    main()
