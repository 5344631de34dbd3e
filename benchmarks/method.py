"""Which method learns a concept and keeps the few steps? On the built-in base, where both can be counted.

    python -m benchmarks.method sweep    # every method's learning rates and lengths, on development concepts
    python -m benchmarks.method test     # each with its best settings, on test concepts and several seeds
    python -m benchmarks.method levers   # D-OPSD with one thing changed, on development concepts
    python -m benchmarks.method health   # D-OPSD on test concepts, looked at often
    python -m benchmarks.method table    # all tables, from what was measured

Every run is a line of results/method.jsonl; what stands there is not run again.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.concepts import ConceptData, NeutralData, concepts_of, encode_concept, encode_neutral
from benchmarks.health_report import judge_rule, judge_warnings
from benchmarks.levers import LEVERS, RECIPE
from benchmarks.methods import METHODS, PAPERS_SETTINGS, Method, Training, train
from benchmarks.record import RESULTS, save_result
from benchmarks.scores import (
    MANY_STEPS,
    concept_scores,
    draw_pictures,
    features_of,
    neutral_scores,
    reference,
)
from dopsd_app.adapters import adapter_weights, as_base, load_adapter_weights
from dopsd_app.base_models import BaseModel, load_base_model
from dopsd_app.catalog import find_base_model
from dopsd_app.config import TrainConfig, load_preset, make_config
from dopsd_app.health import health_of
from dopsd_app.train import prepare
from pocket.judge import frechet_distance
from pocket.measure import PARENT

ROWS = RESULTS / "method.jsonl"
FEATURES = RESULTS / "method_features"  # of the test's pictures, for distances over all, and some pictures
BUDGETS = (300, 600, 1200)  # transformer passes; the paper's recipe makes 32 of them in a step
LOOKS = (150, 300, 450, 600, 900, 1200)  # where a curve is wanted: at levers, and at health
ENOUGH = 0.95  # of the recipe's best score: what levers race for
LEARNING_RATES = (3e-4, 1e-3, 3e-3)
SEEDS = 4
SHOWN = 2  # concepts whose pictures are kept, of the first seed
LOOKED_AT = 4  # pictures that a person's own run would have for its health
UNTRAINED = ("base", "teacher")
SETTINGS_OF = {"dopsd_nf4": "dopsd_ema"}  # rows that differ in nothing else, and have no sweep of their own
EYES = ("judge", "vision")
CHOSEN_BY = ("fidelity", "following", "quality")


@dataclass(frozen=True)
class Job:
    """One training run and what is measured of it."""

    part: str  # "sweep" or "levers" on development concepts, "test" or "health" on the test's
    method: str
    concept: int
    seed: int
    learning_rate: float
    budgets: tuple[int, ...]

    @property
    def key(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    def file(self, content: str) -> Path:
        """Where the features of its pictures of "4" or "32" steps are, or "pictures" themselves."""
        return FEATURES / f"{base_mark()}-{hashlib.sha256(self.key.encode()).hexdigest()[:16]}-{content}.npy"


# --- one job


@dataclass(frozen=True)
class NeutralWorld:
    """Neutral prompts, and the base's pictures of them from the noise that is used and from other noise."""

    asked: NeutralData
    before: list[Image.Image]
    other: list[Image.Image]
    priors: NeutralData  # other prompts, which methods may train on


@cache
def neutral_world() -> NeutralWorld:
    """What is the same for all jobs of this process."""
    base_model = load_base_model(_config())
    base_model.load_encoders()
    asked, priors = (encode_neutral(base_model, part) for part in ("asked", "prior"))
    base_model.load_transformer()
    steps = _config().num_inference_steps
    before, other = (draw_pictures(base_model, asked.prompts, steps, seed) for seed in (0, 1))
    return NeutralWorld(asked, before, other, priors)


@cache
def concept_data(part: str, number: int) -> ConceptData:
    """A concept, encoded once for all its jobs in this process."""
    base_model = load_base_model(_config())
    base_model.load_encoders()
    base_model.load_transformer()
    return encode_concept(base_model, "development" if part in ("sweep", "levers") else "test", number)


def _config() -> TrainConfig:
    return make_config(load_preset("pocket").settings | PAPERS_SETTINGS)


def load_parent(config: TrainConfig) -> BaseModel:
    """The base with the transformer of the many-step parent that it was distilled from."""
    base_model = load_base_model(config)
    base_model.load_transformer()
    weights = load_file(PARENT)
    own = {name: weights[f"transformer.{name}"] for name in base_model.transformer.state_dict()}
    base_model.transformer.load_state_dict(own)
    return base_model


def load_learner(method: Method, config: TrainConfig) -> BaseModel | None:
    """Another model than the base itself, where the LoRA is trained on one and moved over."""
    if method.on_parent:
        return load_parent(config)
    if config.quantization == "none":
        return None
    quantized = load_base_model(config)
    quantized.load_transformer()
    return quantized


def run_job(job: Job) -> list[dict]:
    """A line of scores at each budget."""
    torch.set_num_threads(1)
    data, neutral = concept_data(job.part, job.concept), neutral_world()
    config = replace(_config(), learning_rate=job.learning_rate, seed=job.seed)
    rows = []
    for base_model, facts in trained(job, config, data, neutral.priors):
        prompts = data.teacher_prompts if job.method == "teacher" else data.prompts
        steps = config.num_inference_steps
        few = draw_pictures(base_model, prompts, steps, job.seed)
        scores = concept_scores(few, data)
        if job.part != "levers":
            pictures = draw_pictures(base_model, neutral.asked.prompts, steps)
            scores |= neutral_scores(pictures, neutral.before, neutral.other, neutral.asked)
        if job.part == "test":
            many = draw_pictures(base_model, prompts[::2], MANY_STEPS, job.seed)
            half = replace(data, scenes=data.scenes[::2], captions=data.captions[::2])
            slow = concept_scores(many, half)
            scores |= {"fidelity_32_steps": slow["fidelity"], "quality_32_steps": slow["quality"]}
            for drawn, count in ((few, steps), (many, MANY_STEPS)):
                np.save(job.file(str(count)), features_of(drawn).half().numpy())
            if job.seed == 0 and job.concept < SHOWN:
                np.save(job.file("pictures"), np.stack([*few, *pictures]))
        row = {"job": asdict(job), **facts, "scores": _rounded(scores)}
        if job.part != "levers" and job.method not in UNTRAINED:
            row["health"] = measure_health(base_model, config, data, neutral.asked)
        rows.append(row)
    return rows


def measure_health(
    base_model: BaseModel, config: TrainConfig, data: ConceptData, neutral: NeutralData
) -> dict[str, dict[str, dict]]:
    """What a person's own run would see of the base's health and the LoRA's, with each pair of eyes."""

    def look() -> tuple[list[Image.Image], ...]:
        asked = (data.prompts[:LOOKED_AT], neutral.prompts[:LOOKED_AT])
        return tuple(
            draw_pictures(base_model, prompts, config.num_inference_steps, config.seed, one_noise=True)
            for prompts in asked
        )

    with as_base(base_model.transformer):
        base, base_neutral = look()
    lora, lora_neutral = look()
    health = {}
    for name, eyes in eyes_of(base_model).items():
        training, seen, zero, zero_neutral, seen_neutral = map(
            eyes, (list(data.pictures), lora, base, base_neutral, lora_neutral)
        )
        health[name] = {
            "base": _rounded(asdict(health_of(training, zero, zero, zero_neutral, zero_neutral))),
            "lora": _rounded(asdict(health_of(training, zero, seen, zero_neutral, seen_neutral))),
        }
    return health


def eyes_of(base_model: BaseModel) -> dict[str, Callable[[list[Image.Image]], Tensor]]:
    """What health can be seen with, by the names in EYES: the judge, or every base's own vision tower."""

    def vision(pictures: list[Image.Image]) -> Tensor:
        return torch.stack([base_model.picture_features(picture) for picture in pictures])

    return {"judge": features_of, "vision": vision}


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


def trained(
    job: Job, config: TrainConfig, data: ConceptData, priors: NeutralData
) -> Iterator[tuple[BaseModel, dict]]:
    """The model at each budget, with what it cost."""
    base_model = load_base_model(config)
    base_model.load_transformer()
    if job.method in UNTRAINED:
        yield base_model, {"passes": 0, "steps": 0, "seconds": 0.0}
        return
    method = (METHODS | LEVERS)[job.method]
    config = replace(config, **dict(method.settings))
    learner = load_learner(method, config) or base_model
    if learner is not base_model:
        prepare(base_model, config)
    training, seconds, started = Training(learner, config, data, priors), 0.0, time.perf_counter()
    for steps in train(method, training, job.budgets):
        seconds += time.perf_counter() - started
        if learner is not base_model:
            weights = adapter_weights(learner.transformer, "student")
            load_adapter_weights(base_model.transformer, "student", weights)
        yield base_model, {"passes": training.passes, "steps": steps, "seconds": round(seconds, 1)}
        started = time.perf_counter()


# --- all jobs


def run_jobs(jobs: list[Job], processes: int) -> None:
    """Runs what has not been run, and appends its lines as they come."""
    FEATURES.mkdir(exist_ok=True)
    known = {job_of(row).key for row in read_rows()}
    jobs = [job for job in jobs if job.key not in known]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for number, rows in enumerate(pool.imap_unordered(run_job, jobs), 1):
            with ROWS.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"base": base_mark(), **row}) + "\n" for row in rows)
            job, scores = rows[-1]["job"], rows[-1]["scores"]
            shown = {name: scores.get(name) for name in (*CHOSEN_BY, "drift")}
            print(number, len(jobs), job["method"], job["concept"], job["learning_rate"], shown, flush=True)


def job_of(row: dict) -> Job:
    """What a line was measured of."""
    return Job(**row["job"] | {"budgets": tuple(row["job"]["budgets"])})


@cache
def base_mark() -> str:
    """Which base the figures are of: its transformer's digest."""
    file = find_base_model(_config().base_model) / "transformer" / "diffusion_pytorch_model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def read_rows() -> list[dict]:
    """All lines that were measured on this base."""
    if not ROWS.exists():
        return []
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["base"] == base_mark()]


def sweep_jobs(methods: Iterable[str]) -> list[Job]:
    """Every method at every learning rate; the lengths are looked at on the way."""
    return [
        job
        for method in methods
        for rate in LEARNING_RATES
        for job in _development("sweep", method, rate, BUDGETS)
    ]


def lever_jobs(levers: Iterable[str]) -> list[Job]:
    """Every lever at the recipe's best learning rate, and the recipe at all of them."""
    rates = {lever: LEARNING_RATES if lever == RECIPE else best_settings(RECIPE)[:1] for lever in levers}
    return [
        job for lever in levers for rate in rates[lever] for job in _development("levers", lever, rate, LOOKS)
    ]


def _development(part: str, method: str, rate: float, budgets: tuple[int, ...]) -> list[Job]:
    return [
        Job(part, method, concept, 0, rate, budgets) for concept in range(len(concepts_of("development")))
    ]


def test_jobs(methods: Iterable[str]) -> list[Job]:
    """Every method with its best settings, and the untrained base and teacher."""
    chosen = {method: best_settings(SETTINGS_OF.get(method, method)) for method in methods}
    settings = {**dict.fromkeys(UNTRAINED, (0.0, 0)), **chosen}
    return [
        Job("test", method, concept, seed, rate or 1e-3, (budget,))
        for method, (rate, budget) in settings.items()
        for concept in range(len(concepts_of("test")))
        for seed in range(SEEDS)
    ]


def health_jobs() -> list[Job]:
    """The recipe at its best learning rate, and at three times that, which is to ruin something."""
    rate = best_settings(RECIPE)[0]
    return [
        Job("health", RECIPE, concept, 0, factor * rate, LOOKS)
        for factor in (1, 3)
        for concept in range(len(concepts_of("test")))
    ]


def mean_products(part: str, method: str, budgets: tuple[int, ...]) -> dict[tuple[float, int], float]:
    """The mean product over the development concepts, for each learning rate and number of passes."""
    products = defaultdict(list)
    for row in read_rows():
        job = row["job"]
        if (job["part"], job["method"], tuple(job["budgets"])) == (part, method, budgets):
            budget = min(budgets, key=lambda budget: abs(budget - row["passes"]))
            products[job["learning_rate"], budget].append(product(row["scores"]))
    if not products:
        raise SystemExit(f"{method} was not measured on this base's development concepts yet.")
    return {settings: float(np.mean(values)) for settings, values in products.items()}


def best_settings(method: str) -> tuple[float, int]:
    """Learning rate and passes with the highest mean product of fidelity, following and quality."""
    products = mean_products("sweep", method, BUDGETS)
    return max(products, key=products.get)


def product(scores: dict) -> float:
    """What the methods are ranked by."""
    return float(np.prod([scores[name] for name in CHOSEN_BY]))


# --- the table


def make_table() -> dict:
    """Means over concepts and seeds, with 95 % intervals by drawing concepts again (bootstrap)."""
    groups, files = defaultdict(lambda: defaultdict(list)), defaultdict(list)
    for row in read_rows():
        if row["job"]["part"] == "test":
            files[row["job"]["method"]].append(job_of(row))
            scores = {**row["scores"], "product": product(row["scores"]), "seconds": row["seconds"]}
            groups[row["job"]["method"]][row["job"]["concept"]].append(scores)
    table, many = {}, (_config().num_inference_steps, MANY_STEPS)
    for method, concepts in groups.items():
        names = next(iter(concepts.values()))[0]
        means = {name: [np.mean([s[name] for s in rows]) for rows in concepts.values()] for name in names}
        table[method] = {
            "runs": sum(map(len, concepts.values())),
            "settings": None if method in UNTRAINED else best_settings(SETTINGS_OF.get(method, method)),
            "mean": {name: round(float(np.mean(values)), 4) for name, values in means.items()},
            "interval_95": {name: _interval(values) for name, values in means.items()},
            "frechet_distance": {steps: _distance(files[method], steps) for steps in many},
        }
    return table


def make_levers_table() -> dict:
    """By lever and learning rate: scores by passes, and passes to ENOUGH of the recipe's best score."""
    scores = {}
    for lever in LEVERS:
        for (rate, budget), score in sorted(mean_products("levers", lever, LOOKS).items()):
            scores.setdefault((lever, rate), {})[budget] = score
    costs = defaultdict(list)
    for row in read_rows():
        if row["job"]["part"] == "levers" and row["passes"] >= LOOKS[-1]:
            costs[row["job"]["method"], row["job"]["learning_rate"]].append(row["seconds"] / row["passes"])
    wanted = ENOUGH * max(max(row.values()) for (lever, _), row in scores.items() if lever == RECIPE)
    return {
        f"{lever}, learning rate {rate:g}": {
            "score": {budget: round(score, 4) for budget, score in row.items()},
            "passes_to_recipes_score": passes_to(wanted, row),
            "milliseconds_per_pass": round(1000 * float(np.mean(costs[lever, rate])), 1),
        }
        for (lever, rate), row in scores.items()
    }


def passes_to(wanted: float, scores: dict[int, float]) -> int | None:
    """After how many passes a score is reached, on straight lines between the looks at it; `None`: never."""
    passes, reached = 0, 0.0
    for budget, score in scores.items():
        if score >= wanted:
            return round(passes + (budget - passes) * (wanted - reached) / (score - reached))
        passes, reached = budget, score
    return None


def make_health_report() -> dict:
    """The rule for the best checkpoint and the warnings, by each pair of eyes."""
    runs, swept, base = defaultdict(list), [], []
    for row in read_rows():
        job = row["job"]
        if job["part"] == "health":
            runs[job_of(row).key].append(row)
        elif job["part"] == "sweep":
            swept.append(row)
        elif job["method"] == "base":
            base.append(row["scores"]["neutral_quality"])
    return {
        eyes: {
            "best_checkpoint": judge_rule(runs.values(), eyes, product),
            "warnings": judge_warnings(swept, eyes, float(np.mean(base))),
        }
        for eyes in EYES
    }


def _distance(jobs: list[Job], steps: int) -> float:
    seen = torch.cat([torch.from_numpy(np.load(job.file(str(steps)))).float() for job in jobs])
    return round(frechet_distance(seen, reference().features), 2)


def _interval(values: list[float]) -> list[float]:
    rng = np.random.default_rng(0)
    means = rng.choice(values, (4000, len(values))).mean(1)
    return [round(float(x), 4) for x in np.percentile(means, (2.5, 97.5))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", choices=("sweep", "test", "levers", "health", "table"))
    parser.add_argument("--only", nargs="+", choices=METHODS | LEVERS, help="methods or levers")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    if arguments.part == "table":
        save_result("method", {"base": base_mark(), "methods": make_table()})
        save_result("health", {"base": base_mark(), "eyes": make_health_report()})
        save_result("levers", {"base": base_mark(), "recipe": RECIPE, "levers": make_levers_table()})
        return
    jobs = {
        "sweep": lambda: sweep_jobs(arguments.only or [name for name in METHODS if name not in SETTINGS_OF]),
        "test": lambda: test_jobs(arguments.only or METHODS),
        "health": health_jobs,
        "levers": lambda: lever_jobs(arguments.only or LEVERS),
    }
    run_jobs(jobs[arguments.part](), arguments.processes)


if __name__ == "__main__":
    main()
