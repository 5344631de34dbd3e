"""First evidence on the built-in base: base, SFT and D-OPSD on concepts that it never saw.

SFT (flow matching on the training pictures) gets the same LoRA, the same pictures and captions, and as many
forward passes of the transformer as D-OPSD. The judge of the base's world measures, at the native steps.

    python -m benchmarks.method
"""

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.optim import Optimizer

from benchmarks.record import save_result
from dopsd_app import draws
from dopsd_app.base_models import BaseModel, Conditioning, load_base_model
from dopsd_app.config import TrainConfig, load_preset, make_config
from dopsd_app.encode import EncodedExample
from dopsd_app.rollout import sample
from dopsd_app.train import optimizer_step, prepare
from pocket.captions import BACKGROUND_WORDS, PLACE_WORDS
from pocket.judge import agreement, features, frechet_distance, judge
from pocket.world import SIZES, Concept, Scene, draw, random_concept, random_scene

TRIGGER = "zorp"
PICTURES = 6  # training pictures of a concept
PROMPTS = 64  # new scenes that a concept is asked for
PASSES_PER_STATE = 2  # D-OPSD: the teacher's and the student's


def scene_caption(scene: Scene) -> str:
    """What a person would write: the trigger, and the scene."""
    size, place = SIZES[scene.size], PLACE_WORDS[scene.place]
    return f"a {size} {TRIGGER} {place} on a {BACKGROUND_WORDS[scene.background]} background"


@dataclass(frozen=True)
class ConceptData:
    """What the methods learn one concept from, and what they are asked for afterwards."""

    examples: tuple[EncodedExample, ...]
    latents: Tensor  # (6, C, h, w) of the training pictures, for SFT
    scenes: list[Scene]  # new ones
    prompts: list[Conditioning]  # of the new scenes
    teacher_prompts: list[
        Conditioning
    ]  # the same with one of the training pictures each: what can be learned


@dataclass(frozen=True)
class Result:
    """One method on one concept."""

    figures: dict[str, float]
    pictures: list[Image.Image]


def encode_concept(base_model: BaseModel, concept: Concept, rng: np.random.Generator) -> ConceptData:
    """Six pictures with captions in random scenes, and prompts of other scenes."""
    scenes = [random_scene(rng) for _ in range(PICTURES)]
    pictures = [Image.fromarray(draw(concept, scene)) for scene in scenes]
    captions = [scene_caption(scene) for scene in scenes]
    examples = tuple(
        EncodedExample(
            student=(base_model.encode_student(caption),),
            teacher=(base_model.encode_teacher(picture, caption),),
            height=64,
            width=64,
        )
        for picture, caption in zip(pictures, captions, strict=True)
    )
    latents = torch.stack([base_model.encode_picture(picture) for picture in pictures])
    new_scenes = [random_scene(rng) for _ in range(PROMPTS)]
    new_captions = [scene_caption(scene) for scene in new_scenes]
    return ConceptData(
        examples,
        latents,
        new_scenes,
        prompts=[base_model.encode_student(caption) for caption in new_captions],
        teacher_prompts=[
            base_model.encode_teacher(pictures[index % PICTURES], caption)
            for index, caption in enumerate(new_captions)
        ],
    )


def sft_step(
    base_model: BaseModel, config: TrainConfig, data: ConceptData, optimizer: Optimizer, step: int
) -> None:
    """One step of ordinary fine-tuning: predict noise - picture from a noised training picture."""
    drawn = draws.draw_examples(config.seed, step, config.batch_size, len(data.examples))
    shape = data.latents.shape[1:]
    noise = torch.stack([draws.draw_noise(shape, config.seed, step, i) for i in range(len(drawn))]).to(
        data.latents
    )
    uniform = torch.rand(len(drawn), generator=draws.generator(config.seed, draws.PREVIEW, step)).to(
        data.latents
    )
    sigma = 3 * uniform / (1 + 2 * uniform)  # uniform in the scheduler's own time, as common trainers do
    level = sigma[:, None, None, None]
    pictures = data.latents[drawn]
    noised = (1 - level) * pictures + level * noise
    velocity = base_model.predict_velocity(
        noised, sigma, [data.examples[index].student[0] for index in drawn]
    )
    (velocity - (noise - pictures)).square().mean().backward()
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], config.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()


def draw_pictures(
    base_model: BaseModel, config: TrainConfig, prompts: list[Conditioning]
) -> list[Image.Image]:
    """One picture for each prompt at the native steps, from noise that belongs to its place in the list."""
    shape = base_model.latent_shape(64, 64)
    noise = torch.stack(
        [draws.draw_noise(shape, 1, 0, index, draws.PREVIEW) for index in range(len(prompts))]
    )
    return base_model.decode(
        sample(base_model, prompts, noise, base_model.sigmas(config.num_inference_steps, 64, 64))
    )


def measure(pictures: list[Image.Image], concept: Concept, scenes: list[Scene]) -> dict[str, float]:
    """Shares of the pictures in which the judge sees what was asked for."""
    seen = judge(pictures)
    background = np.mean([seen["background"][i] == scene.background for i, scene in enumerate(scenes)])
    return {**agreement(seen, concept), "background": float(background)}


def train_sft(base_model: BaseModel, config: TrainConfig, data: ConceptData, steps: int) -> None:
    """Ordinary fine-tuning of the student's LoRA."""
    optimizer = prepare(base_model, config)
    for step in range(1, steps + 1):
        sft_step(base_model, config, data, optimizer, step)


def train_dopsd(base_model: BaseModel, config: TrainConfig, data: ConceptData, steps: int) -> None:
    """The product's own training steps."""
    optimizer = prepare(base_model, config)
    for step in range(1, steps + 1):
        optimizer_step(base_model, config, data.examples, optimizer, step)


def run_concept(config: TrainConfig, concept: Concept, seed: int) -> dict[str, Result]:
    """Every method on one concept; "real" is the world itself, what the judge makes of a perfect result."""
    passes = (
        config.steps * config.rollout_steps * PASSES_PER_STATE
    )  # per place in the batch; SFT's step is one
    methods = {
        "base": None,
        "teacher": None,  # the base again, but it sees a picture
        "sft, as many steps": (train_sft, config.steps),
        "sft, as many passes": (train_sft, passes),
        "dopsd": (train_dopsd, config.steps),
    }
    data, results = None, {}
    for method, training in methods.items():
        base_model = load_base_model(config)
        base_model.load_transformer()
        if data is None:
            base_model.load_encoders()
            data = encode_concept(base_model, concept, np.random.default_rng(seed))
        started = time.perf_counter()
        if training:
            train, steps = training
            train(base_model, config, data, steps)
        seconds = time.perf_counter() - started
        prompts = data.teacher_prompts if method == "teacher" else data.prompts
        pictures = draw_pictures(base_model, config, prompts)
        results[method] = Result({**measure(pictures, concept, data.scenes), "seconds": seconds}, pictures)
        print(method, {key: round(value, 3) for key, value in results[method].figures.items()}, flush=True)
    real = [Image.fromarray(draw(concept, scene)) for scene in data.scenes]
    results["real"] = Result({**measure(real, concept, data.scenes), "seconds": 0.0}, real)
    return results


def summarize(concepts: list[dict[str, Result]]) -> dict[str, dict]:
    """Means over the concepts, each concept's own figures, and the Frechet distance to the real pictures."""
    real = features([picture for results in concepts for picture in results["real"].pictures])
    table = {}
    for method in concepts[0]:
        figures = [results[method].figures for results in concepts]
        pictures = [picture for results in concepts for picture in results[method].pictures]
        table[method] = {
            "mean": {key: float(np.mean([f[key] for f in figures])) for key in figures[0]},
            "frechet_distance": float(frechet_distance(features(pictures), real)),
            "concepts": figures,
        }
    return table


def save_sheet(concepts: list[dict[str, Result]], path: Path) -> None:
    """A row of pictures for every concept and method, in the order of the figures, to look at."""
    rows = [results[method].pictures[:12] for results in concepts for method in results]
    sheet = Image.new("RGB", (12 * 64, len(rows) * 64))
    for top, row in enumerate(rows):
        for left, picture in enumerate(row):
            sheet.paste(picture, (left * 64, top * 64))
    sheet.save(path, quality=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--concepts", type=int, default=3)
    parser.add_argument("--steps", type=int, help="optimizer steps of D-OPSD; the preset's unless given")
    parser.add_argument("--sheet", action="store_true", help="also save the pictures, beside the figures")
    parser.add_argument("--name", default="method_v0")
    arguments = parser.parse_args()
    config = make_config(load_preset("pocket").settings)
    if arguments.steps:
        config = replace(config, steps=arguments.steps)
    rng = np.random.default_rng(2026)
    concepts = [random_concept(rng, held_out=True) for _ in range(arguments.concepts)]
    results = [run_concept(config, concept, seed) for seed, concept in enumerate(concepts)]
    table = summarize(results)
    passes = config.steps * config.rollout_steps * PASSES_PER_STATE * config.batch_size
    path = save_result(
        arguments.name,
        {"concepts": [repr(c) for c in concepts], "prompts": PROMPTS, "passes": passes, "methods": table},
    )
    if arguments.sheet:
        save_sheet(results, path.with_suffix(".webp"))
    print(f"Saved {path.name}")


if __name__ == "__main__":
    main()
