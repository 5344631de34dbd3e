"""What was measured: lines of results/method.jsonl, one for each evaluation of a training run."""

import hashlib
import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.concepts import DEVELOPMENT
from benchmarks.record import RESULTS
from dopsd_app.checks.judge.classifier import WEIGHTS
from dopsd_app.models.catalog import find_base_model
from pocket.measure import PARENT

ROWS = RESULTS / "method.jsonl"
PICTURES = RESULTS / "method_pictures"  # of a few of the test's jobs
SCENES, OTHERS = 7, 5  # how many are kept: new scenes of the concept, and other creatures
BUDGETS = (300, 600, 1200)  # transformer passes; the paper's recipe makes 32 of them in a step
CURVE_BUDGETS = (150, 300, 450, 600, 900, 1200)  # where a curve is wanted: at levers, and at health
LONG_BUDGETS = (1200, 2400, 4800)
FIRST_RATES = (1e-3, 3e-3)  # learning rates of every method
FURTHER = {1e-3: 3e-4, 3e-3: 1e-2}  # and a third, beyond the better one
UNTRAINED = ("base", "teacher", "parent")
LABELS = {  # as they stand in the table and beside pictures
    "base": "base, untrained",
    "parent": "parent, unguided",
    "teacher": "base, seeing a picture",
    "sft": "SFT",
    "sft_on_parent": "SFT on the parent",
    "dreambooth": "DreamBooth",
    "pso": "PSO",
    "dopsd_ema": "D-OPSD, the paper's",
    "dopsd_live": "D-OPSD, live teacher",
    "dopsd_base": "D-OPSD, base as teacher",
    "dopsd_fast": "D-OPSD, K = 2",
    "dopsd_nf4": "D-OPSD, trained on NF4",
    "off_policy": "off-policy distillation",
    "sft_on_samples": "SFT on teacher's samples",
}
SETTINGS_OF = {"dopsd_nf4": "dopsd_ema"}  # rows that differ in nothing else, and have no sweep of their own
CHOSEN_BY = ("fidelity", "following", "quality")
ON_DEVELOPMENT = ("sweep", "levers", "finals", "long", "health_fit")


@dataclass(frozen=True)
class Job:
    """One training run and what is measured of it."""

    part: str  # one of ON_DEVELOPMENT, on those concepts; "test", "flawless" or "health" on the test's
    method: str
    concept: int
    seed: int
    learning_rate: float
    budgets: tuple[int, ...]

    @property
    def key(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def pictures(self) -> Path:
        """Where its first pictures of the concept's prompts and of the neutral ones are kept, in a row."""
        return PICTURES / f"{base_mark()}-{hashlib.sha256(self.key.encode()).hexdigest()[:16]}.webp"


def job_of(row: dict) -> Job:
    """What a line was measured of."""
    return Job(**row["job"] | {"budgets": tuple(row["job"]["budgets"])})


def budget_of(row: dict) -> int:
    """At which of its budgets a run was looked at: a step may end a little behind it."""
    return min(job_of(row).budgets, key=lambda budget: abs(budget - row["passes"]))


@cache
def base_mark() -> str:
    """Which base, judge and parent the figures are of: a digest of their weights."""
    files = [*sorted(find_base_model("pocket-turbo").folder.rglob("*.safetensors")), WEIGHTS, PARENT]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def read_rows() -> list[dict]:
    """All lines that were measured on this base."""
    if not ROWS.exists():
        return []
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["base"] == base_mark()]


def products(part: str, method: str) -> dict[tuple[float, int], dict[tuple[int, int], float]]:
    """By learning rate and number of passes: the product for each concept and seed."""
    found = defaultdict(dict)
    for row in read_rows():
        job = job_of(row)
        if (job.part, job.method) == (part, method):
            found[job.learning_rate, budget_of(row)][job.concept, job.seed] = product(row["scores"])
    return dict(sorted(found.items()))


def best_settings(method: str) -> tuple[float, int]:
    """Learning rate and passes with the highest mean product of fidelity, following and quality."""
    rates = (*FIRST_RATES, further_rate(method))
    return max((best_length(method, rate) for rate in rates), key=lambda best: best[0])[1:]


def further_rate(method: str) -> float:
    """The third learning rate: one on from the better of the first two, so that few bests lie at an edge."""
    return FURTHER[max(best_length(method, rate) for rate in FIRST_RATES)[1]]


def best_length(method: str, rate: float) -> tuple[float, float, int]:
    """The highest mean product at a learning rate, that rate, and the passes at which it was reached."""
    swept = products("sweep", method)
    lengths = {budget: list(swept.get((rate, budget), {}).values()) for budget in BUDGETS}
    if any(len(values) < DEVELOPMENT for values in lengths.values()):
        raise SystemExit(f"{method}'s sweep on the development concepts is not finished on this base.")
    means = {budget: float(np.mean(values)) for budget, values in lengths.items()}
    best = max(means, key=means.get)  # of equal ones the shorter
    return means[best], rate, best


def product(scores: dict) -> float:
    """What the methods are ranked by."""
    return float(np.prod([scores[name] for name in CHOSEN_BY]))
