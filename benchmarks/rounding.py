"""What does rounding the base's weights cost? Counted on the built-in base, with its preset's own settings.

    python -m benchmarks.rounding --concepts 0 1

The same creatures, seed and steps on the exact base and on rounded ones; each LoRA is scored on the base that
it was trained on, and moved to the exact one. Of each rounded base also how far its velocities are from the
exact one's, on the exact one's own way from noise to picture.
"""

import argparse
import json
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from benchmarks.concepts import ConceptData, encode_concept
from benchmarks.record import RESULTS, save_result
from benchmarks.rows import base_mark, product
from benchmarks.scores import BATCH, concept_scores, draw_pictures
from benchmarks.tables import mean_and_interval
from dopsd_app.config import DEFAULT_PRESET, TrainConfig, load_preset, make_config
from dopsd_app.method import randomness
from dopsd_app.method.adapters import adapter_weights, load_adapter_weights
from dopsd_app.method.objectives import make_objective
from dopsd_app.method.objectives.protocol import Material
from dopsd_app.method.step import optimizer_step, prepare
from dopsd_app.models.load import load_base_model
from dopsd_app.models.memory_plan import MemoryPlan
from dopsd_app.models.protocol import BaseModel, Conditioning

ROUNDINGS = {  # the base's precision, and how its layers' weights are rounded
    "none": ("float32", "none"),
    "int8": ("float32", "int8"),
    "nf4": ("float32", "nf4"),
    "bfloat16": ("bfloat16", "none"),
}
EXACT = "none"
PART = "test"  # creatures that no setting was chosen on
SHOWN = ("fidelity", "following", "quality", "copying")
RESULT = RESULTS / "rounding.json"


def make_settings(seed: int) -> TrainConfig:
    return replace(make_config(load_preset(DEFAULT_PRESET).settings), seed=seed, device="cpu")


def load(config: TrainConfig, rounding: str) -> BaseModel:
    """The base with its transformer, rounded; without its encoders."""
    precision, quantization = ROUNDINGS[rounding]
    base_model = load_base_model(replace(config, precision=precision), MemoryPlan(quantization=quantization))
    base_model.load_transformer()
    return base_model


@cache
def concept_data(config: TrainConfig, concept: int) -> ConceptData:
    base_model = load(config, EXACT)
    base_model.load_encoders()
    return encode_concept(base_model, PART, concept)


# --- how far velocities are from the exact ones


@torch.no_grad()
def velocity_errors(
    exact: BaseModel, rounded: BaseModel, prompts: list[Conditioning], config: TrainConfig
) -> list[float]:
    """At each native sigma |rounded - exact| / |exact| of the velocities, over all prompts together."""
    noise = torch.stack(
        [
            randomness.draw_noise(exact.latent_shape(*size_of(config)), config.seed, 0, index)
            for index in range(len(prompts))
        ]
    )
    latents, errors = noise, []
    for sigma, sigma_next in pairwise(exact.sigmas(config.num_inference_steps, *size_of(config))):
        velocity, other = (predict(base, latents, sigma, prompts) for base in (exact, rounded))
        errors.append(round(((other - velocity).norm() / velocity.norm()).item(), 5))
        latents = latents + (sigma_next - sigma) * velocity
    return errors


def predict(base_model: BaseModel, latents: Tensor, sigma: Tensor, prompts: list[Conditioning]) -> Tensor:
    parts = range(0, len(prompts), BATCH)
    return torch.cat(
        [
            base_model.predict_velocity(latents[at : at + BATCH], sigma, prompts[at : at + BATCH]).float()
            for at in parts
        ]
    )


def size_of(config: TrainConfig) -> tuple[int, int]:
    return config.resolution, config.resolution


# --- a training


def train(base_model: BaseModel, config: TrainConfig, data: ConceptData) -> list[float]:
    """The preset's steps; returns their losses, and leaves the LoRA on the base."""
    optimizer = prepare(base_model, config)
    objective = make_objective(base_model, config, Material(data.examples, (), ()))
    take = partial(optimizer_step, base_model, config, data.examples, objective, optimizer)
    return [take(step).loss for step in range(1, config.steps + 1)]


def score(base_model: BaseModel, config: TrainConfig, data: ConceptData) -> dict[str, float | None]:
    """What the judge sees in pictures of new prompts."""
    pictures = draw_pictures(base_model, data.prompts, config.num_inference_steps, config.seed)
    scores = concept_scores(pictures, data)
    shown = {name: scores[name] for name in SHOWN} | {"product": product(scores)}
    return {name: None if value is None else round(value, 4) for name, value in shown.items()}


def measure(config: TrainConfig, rounding: str, concept: int) -> dict:
    """One training on a rounded base, and its LoRA on both."""
    data, base_model, exact = concept_data(config, concept), load(config, rounding), load(config, EXACT)
    row = {"rounding": rounding, "concept": concept, "seed": config.seed, "steps": config.steps}
    row["velocity_errors"] = velocity_errors(exact, base_model, list(data.prompts), config)
    row["last_loss"] = round(train(base_model, config, data)[-1], 5)
    row["own_base"] = score(base_model, config, data)
    prepare(exact, config)
    weights = adapter_weights(base_model.transformer, "student")
    load_adapter_weights(exact.transformer, "student", weights)
    row["exact_base"] = score(exact, config, data)
    return row


# --- the table


def save(row: dict) -> list[dict]:
    """Adds a row to those that were measured before; returns all."""
    rows = json.loads(RESULT.read_text(encoding="utf-8"))["rows"] if RESULT.exists() else []
    case = ("rounding", "concept", "seed")
    rows = [other for other in rows if any(other[name] != row[name] for name in case)]
    rows = sorted([*rows, row], key=lambda one: [one[name] for name in ("concept", "seed")])
    about = {"base": base_mark(), "preset": DEFAULT_PRESET, "means": summarize(rows)}
    save_result("rounding", {**about, "rows": rows})
    return rows


def summarize(rows: list[dict]) -> dict[str, dict]:
    """Of each base, means over what was trained on it, and how far the exact base's LoRAs are ahead."""
    found = {}
    for rounding in ROUNDINGS:
        trainings = {case_of(row): row for row in rows if row["rounding"] == rounding}
        exact = {case_of(row): row for row in rows if row["rounding"] == EXACT}
        if not trainings:
            continue
        errors = [error for row in trainings.values() for error in row["velocity_errors"]]
        found[rounding] = {"trainings": len(trainings), "velocity_error": round(float(np.mean(errors)), 4)}
        for where in ("own_base", "exact_base"):
            products = [row[where]["product"] for row in trainings.values()]
            # Paired: of the same creature and seed.
            leads = [
                exact[case]["exact_base"]["product"] - row[where]["product"]
                for case, row in trainings.items()
                if case in exact
            ]
            found[rounding][where] = {
                "product": mean_and_interval(products),
                "behind": mean_and_interval(leads),
            }
    return found


def case_of(row: dict) -> tuple[int, int]:
    return row["concept"], row["seed"]


def as_markdown(rows: list[dict]) -> str:
    """A line for each base."""
    columns = [
        "trained on",
        "trainings",
        "velocities apart by",
        "product there",
        "on the exact base",
        "behind by",
    ]
    lines = [columns, ["---"] * len(columns)]
    for rounding, means in summarize(rows).items():
        there, moved = means["own_base"], means["exact_base"]
        figures = [there["product"], moved["product"], moved["behind"]]
        apart = f"{means['velocity_error']:.1%}"
        lines.append([rounding, str(means["trainings"]), apart, *map(in_words, figures)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def in_words(value: dict | None) -> str:
    if value is None:
        return ""
    half = "" if value["interval_95"] is None else f" ± {value['interval_95']:.2f}"
    return f"{value['mean']:.2f}{half}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--concepts", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--only", nargs="+", choices=ROUNDINGS, default=["none", "int8", "nf4"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for seed in arguments.seeds:
        for concept in arguments.concepts:
            for rounding in arguments.only:
                row = measure(make_settings(seed), rounding, concept)
                print(row, flush=True)
                rows = save(row)
    print(as_markdown(rows))


if __name__ == "__main__":
    main()
