"""Which method learns a concept and keeps the few steps? On the built-in base, where both can be counted.

    python -m benchmarks.method sweep    # every method's learning rates and lengths, on development concepts
    python -m benchmarks.method test     # each with its best settings, on test concepts and several seeds
    python -m benchmarks.method levers   # D-OPSD with one thing changed, on development concepts
    python -m benchmarks.method finals   # what was put together from levers, on the same and several seeds
    python -m benchmarks.method long     # some with four times the passes, on development concepts
    python -m benchmarks.method flawless # SFT and D-OPSD on better pictures than people have
    python -m benchmarks.method health   # D-OPSD on test concepts, looked at often
    python -m benchmarks.method table    # all tables, from what was measured

Every run is a line of results/method.jsonl; what stands there is not run again.
"""

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache, partial

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks.concepts import ConceptData, NeutralData, encode_concept, encode_neutral
from benchmarks.jobs import (
    finals_jobs,
    flawless_jobs,
    health_jobs,
    lever_jobs,
    long_jobs,
    sweep_jobs,
    test_jobs,
)
from benchmarks.levers import FINALS, LEVERS
from benchmarks.methods import METHODS, PAPERS_SETTINGS, Method, Training, train
from benchmarks.record import save_result
from benchmarks.rows import (
    CHOSEN_BY,
    FIRST_RATES,
    ON_DEVELOPMENT,
    OTHERS,
    PICTURES,
    ROWS,
    SCENES,
    SETTINGS_OF,
    UNTRAINED,
    Job,
    base_mark,
    further_rate,
    job_of,
    read_rows,
)
from benchmarks.scores import (
    OTHER_STEPS,
    concept_scores,
    draw_pictures,
    neutral_scores,
)
from benchmarks.tables import (
    as_markdown,
    long_as_markdown,
    make_health_report,
    make_levers_table,
    make_long_table,
    make_table,
    steps_as_markdown,
)
from dopsd_app.checks.health import HealthPictures, features_health, judged_health
from dopsd_app.config import TrainConfig, make_config
from dopsd_app.method.adapters import adapter_weights, load_adapter_weights
from dopsd_app.method.step import prepare
from dopsd_app.models.catalog import find_facts
from dopsd_app.models.load import load_base_model
from dopsd_app.models.memory_plan import MemoryPlan
from dopsd_app.models.protocol import NO_PICTURES, BaseModel, Conditioning
from pocket.measure import PARENT

SHOWN = 2  # concepts whose pictures are kept, of the first seed


# --- one job


@dataclass(frozen=True)
class NeutralWorld:
    """Neutral prompts, and the base's pictures of them from the noise that is used and from other noise."""

    watched: tuple[Conditioning, ...]  # those of a person's own run, for its health
    asked: NeutralData
    before: list[Image.Image]
    other: list[Image.Image]
    priors: NeutralData  # other prompts, which methods may train on


@cache
def neutral_world() -> NeutralWorld:
    """What is the same for all jobs of this process."""
    base_model = load_compiled(_config())
    base_model.load_encoders()
    asked, priors = (encode_neutral(base_model, part) for part in ("asked", "prior"))
    watched = tuple(
        base_model.encode(NO_PICTURES, prompt, "student")
        for prompt in find_facts(_config().base_model).neutral_prompts
    )
    steps = _config().num_inference_steps
    before, other = (draw_pictures(base_model, asked.prompts, steps, seed) for seed in (0, 1))
    return NeutralWorld(watched, asked, before, other, priors)


@cache
def concept_data(part: str, number: int) -> ConceptData:
    """A concept, encoded once for all its jobs in this process."""
    base_model = load_base_model(_config())
    base_model.load_encoders()
    base_model.load_transformer()
    concepts = "development" if part in ON_DEVELOPMENT else "test"
    return encode_concept(base_model, concepts, number, worn=part != "flawless")


def _config() -> TrainConfig:
    return make_config(PAPERS_SETTINGS)


def load_compiled(config: TrainConfig) -> BaseModel:
    """The base with a transformer whose blocks are compiled at their first use: 1.5 times as fast."""
    torch._dynamo.config.recompile_limit = 200  # adapters on and off, with gradient and without, and so on
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    base_model = load_base_model(config, MemoryPlan(quantization=config.quantization))
    base_model.load_transformer()
    base_model.transformer.compile_repeated_blocks(dynamic=True)
    return base_model


@cache
def warm_up(name: str) -> None:
    """A method's first step before any that is timed: compiling takes a minute or two in each process."""
    method, config = settings_of(name)
    data, priors = concept_data("sweep", 0), neutral_world().priors
    training = Training(load_learner(method, config), config, data, priors)
    next(train(method, training, budgets=[1]))


def settings_of(name: str) -> tuple[Method, TrainConfig]:
    """A method or lever, and the settings that are its own."""
    method = (METHODS | LEVERS | FINALS)[name]
    return method, replace(_config(), **dict(method.settings))


def load_parent(config: TrainConfig) -> BaseModel:
    """The base with the transformer of the many-step parent that it was distilled from."""
    base_model = load_compiled(config)
    weights = load_file(PARENT)
    own = {name: weights[f"transformer.{name}"] for name in base_model.transformer.state_dict()}
    base_model.transformer.load_state_dict(own)
    return base_model


def load_untrained(method: str, config: TrainConfig) -> BaseModel:
    """The parent, or the base, which is also the teacher, with more in its conditioning."""
    if method == "parent":
        return load_parent(config)
    return load_compiled(config)


def load_learner(method: Method, config: TrainConfig) -> BaseModel:
    """What the LoRA is trained on: the base itself, or what it is moved over from."""
    if method.on_parent:
        return load_parent(config)
    return load_compiled(config)


def run_job(job: Job) -> list[dict]:
    """A line of scores at each budget."""
    torch.set_num_threads(1)
    data, neutral = concept_data(job.part, job.concept), neutral_world()
    rows = []
    for base_model, facts in trained(job, data, neutral.priors):
        prompts = data.teacher_prompts if job.method == "teacher" else data.prompts
        steps = _config().num_inference_steps
        few = draw_pictures(base_model, prompts, steps, job.seed)
        scores = concept_scores(few, data)
        if job.part not in ("sweep", "levers", "finals", "long"):  # nothing is chosen by it
            pictures = draw_pictures(base_model, neutral.asked.prompts, steps)
            if job.method != "teacher":  # of what is neutral there is no picture that it could see
                scores |= neutral_scores(pictures, neutral.before, neutral.other, neutral.asked, data.concept)
        if job.part in ("test", "flawless"):
            if job.seed == 0:  # 32 steps take longer than all else
                scores |= measure_other_steps(base_model, data, prompts, job.seed)
            if job.seed == 0 and job.concept < SHOWN:
                strip = np.hstack([np.asarray(picture) for picture in [*few[:SCENES], *pictures[:OTHERS]]])
                Image.fromarray(strip).save(job.pictures, quality=95)
        row = {"job": asdict(job), **facts, "scores": _rounded(scores)}
        if job.part in ("health", "health_fit"):
            row["health"] = measure_health(base_model, job)
        rows.append(row)
    return rows


def measure_other_steps(
    base_model: BaseModel, data: ConceptData, prompts: tuple[Conditioning, ...], seed: int
) -> dict[str, float]:
    """Fidelity and quality at fewer and at many steps, on a third of the prompts."""
    third, scores = replace(data, scenes=data.scenes[::3], captions=data.captions[::3]), {}
    for count in OTHER_STEPS:
        measured = concept_scores(draw_pictures(base_model, prompts[::3], count, seed), third)
        scores |= {f"{name}_{count}_steps": measured[name] for name in ("fidelity", "quality")}
    return scores


def draw_watched(base_model: BaseModel, data: ConceptData, one_noise: bool) -> list[list[Image.Image]]:
    """What a person's own run draws for its health: of the concept's prompts, and of neutral ones."""
    steps = _config().num_inference_steps
    return [
        draw_pictures(base_model, prompts, steps, one_noise=one_noise)
        for prompts in (data.watched, neutral_world().watched)
    ]


@cache
def bases_watched(part: str, number: int, one_noise: bool) -> list[list[Image.Image]]:
    """The same by the base, which is the same at each evaluation."""
    return draw_watched(load_compiled(_config()), concept_data(part, number), one_noise)


def measure_health(base_model: BaseModel, job: Job) -> dict[str, dict[str, dict]]:
    """What a person's own run would see of the base's health and the LoRA's, with each pair of eyes."""
    data, found = concept_data(job.part, job.concept), {}
    eyes = {"judge": (judged_health, False), "vision": (partial(features_health, base_model), True)}
    for name, (score, one_noise) in eyes.items():
        base, base_neutral = bases_watched(job.part, job.concept, one_noise)
        lora, lora_neutral = draw_watched(base_model, data, one_noise)
        drawn = HealthPictures(data.watched_captions, data.pictures, base, lora, base_neutral, lora_neutral)
        found[name] = {
            side: _rounded(asdict(score(shown)))
            for side, shown in (("base", drawn.at_base()), ("lora", drawn))
        }
    return found


def _rounded(values: dict[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else round(value, 4) for name, value in values.items()}


def trained(job: Job, data: ConceptData, priors: NeutralData) -> Iterator[tuple[BaseModel, dict]]:
    """The model at each budget, with what it cost.

    Seconds are the processor's, which is slower with a busy neighbour; first jobs may still compile a part.
    """
    if job.method in UNTRAINED:
        yield load_untrained(job.method, _config()), {"passes": 0, "steps": 0, "seconds": 0.0}
        return
    warm_up(job.method)
    method, config = settings_of(job.method)
    config = replace(config, learning_rate=job.learning_rate, seed=job.seed)
    learner = load_learner(method, config)
    moves = method.on_parent or config.quantization != "none"
    base_model = load_compiled(_config()) if moves else learner
    if moves:
        prepare(base_model, _config())
    training, seconds, started = Training(learner, config, data, priors), 0.0, time.process_time()
    for steps in train(method, training, job.budgets):
        seconds += time.process_time() - started
        if moves:
            weights = adapter_weights(learner.transformer, "student")
            load_adapter_weights(base_model.transformer, "student", weights)
        yield base_model, {"passes": training.passes, "steps": steps, "seconds": round(seconds, 1)}
        started = time.process_time()


# --- all jobs


def run_jobs(jobs: list[Job], processes: int) -> None:
    """Runs what has not been run, and appends its lines as they come."""
    PICTURES.mkdir(exist_ok=True)
    known = {job_of(row).key for row in read_rows()}
    jobs = [job for job in jobs if job.key not in known]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for number, rows in enumerate(pool.imap_unordered(run_job, jobs), 1):
            with ROWS.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"base": base_mark(), **row}) + "\n" for row in rows)
            job, scores = rows[-1]["job"], rows[-1]["scores"]
            shown = {name: scores[name] for name in CHOSEN_BY}
            print(number, len(jobs), job["method"], job["concept"], job["learning_rate"], shown, flush=True)


def save_tables() -> None:
    """A file of results for each part that was measured."""
    measured = {row["job"]["part"] for row in read_rows()}
    tables = {
        "sweep": (make_table, ("sweep",)),
        "method": (make_table, ("test",)),
        "flawless": (make_table, ("flawless",)),
        "levers": (make_levers_table, ("levers", "finals")),
        "long": (make_long_table, ("long",)),
        "health": (make_health_report, ("health_fit", "health")),
    }
    for name, (make, parts) in tables.items():
        if made := {part: make(part) for part in parts if part in measured}:
            save_result(name, {"base": base_mark(), **made})
            if make is make_table:
                print(*map(as_markdown, made.values()), sep="\n")
            if name == "method":
                print(steps_as_markdown(made["test"]))
            if name == "long":
                print(long_as_markdown(made["long"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parts = ("sweep", "levers", "finals", "long", "test", "flawless", "health", "table")
    parser.add_argument("part", choices=parts)
    parser.add_argument("--only", nargs="+", help="methods of sweep and test, or levers")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    known = {"sweep": METHODS, "levers": LEVERS, "test": METHODS}.get(arguments.part, {})
    for name in arguments.only or ():
        if name not in known:
            parser.error(f"{arguments.part} has no {name}; there are: {', '.join(known) or 'none'}.")
    if arguments.part == "table":
        save_tables()
        return
    swept = arguments.only or [name for name in METHODS if name not in SETTINGS_OF]
    if arguments.part == "sweep":
        run_jobs(sweep_jobs(swept, lambda method: FIRST_RATES), arguments.processes)
    jobs = {
        "sweep": lambda: sweep_jobs(swept, lambda method: [further_rate(method)]),
        "test": lambda: test_jobs(arguments.only or METHODS),
        "finals": finals_jobs,
        "long": long_jobs,
        "flawless": flawless_jobs,
        "health": health_jobs,
        "levers": lambda: lever_jobs(arguments.only or LEVERS),
    }
    run_jobs(jobs[arguments.part](), arguments.processes)


if __name__ == "__main__":
    main()
