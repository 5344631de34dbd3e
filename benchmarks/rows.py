"""What was measured: lines of results/method.jsonl, one for each look at a training run."""

import hashlib
import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.record import RESULTS
from dopsd_app.catalog import find_base_model

ROWS = RESULTS / "method.jsonl"
PICTURES = RESULTS / "method_pictures"  # of a few of the test's jobs; what is shown of them is committed
BUDGETS = (300, 600, 1200)  # transformer passes; the paper's recipe makes 32 of them in a step
LOOKS = (150, 300, 450, 600, 900, 1200)  # where a curve is wanted: at levers, and at health
UNTRAINED = ("base", "teacher", "parent")
SETTINGS_OF = {"dopsd_nf4": "dopsd_ema"}  # rows that differ in nothing else, and have no sweep of their own
CHOSEN_BY = ("fidelity", "following", "quality")


@dataclass(frozen=True)
class Job:
    """One training run and what is measured of it."""

    part: str  # "sweep" or "levers" on development concepts; "test", "flawless" or "health" on the test's
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
        """Where its pictures (N, 64, 64, 3) of the concept's prompts, then of the neutral ones, are kept."""
        return PICTURES / f"{base_mark()}-{hashlib.sha256(self.key.encode()).hexdigest()[:16]}.npy"


def job_of(row: dict) -> Job:
    """What a line was measured of."""
    return Job(**row["job"] | {"budgets": tuple(row["job"]["budgets"])})


@cache
def base_mark() -> str:
    """Which base the figures are of: its weights' digest."""
    files = sorted(find_base_model("pocket-turbo").rglob("*.safetensors"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def read_rows() -> list[dict]:
    """All lines that were measured on this base."""
    if not ROWS.exists():
        return []
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["base"] == base_mark()]


def mean_products(part: str, method: str) -> dict[tuple[float, int], float]:
    """The mean product over the development concepts, for each learning rate and number of passes."""
    products = defaultdict(list)
    for row in read_rows():
        job = row["job"]
        if (job["part"], job["method"]) == (part, method):
            budget = min(job["budgets"], key=lambda budget: abs(budget - row["passes"]))
            products[job["learning_rate"], budget].append(product(row["scores"]))
    if not products:
        raise SystemExit(f"{method} was not measured on this base's development concepts yet.")
    return {settings: float(np.mean(values)) for settings, values in products.items()}


def best_settings(method: str) -> tuple[float, int]:
    """Learning rate and passes with the highest mean product of fidelity, following and quality."""
    products = mean_products("sweep", method)
    return max(products, key=products.get)


def product(scores: dict) -> float:
    """What the methods are ranked by."""
    return float(np.prod([scores[name] for name in CHOSEN_BY]))
