"""The tables of what was measured: methods, levers, and the rules of the health."""

from collections import defaultdict

import numpy as np

from benchmarks.health_report import judge_rule, judge_warnings
from benchmarks.levers import LEVERS, RECIPE
from benchmarks.rows import (
    SETTINGS_OF,
    UNTRAINED,
    best_settings,
    job_of,
    mean_products,
    product,
    read_rows,
)

ENOUGH = 0.95  # of the recipe's best score: what levers race for
EYES = ("judge", "vision")


def make_table(part: str) -> dict:
    """Of "test" or "flawless": means, and 95 % intervals by drawing concepts again (bootstrap)."""
    groups = defaultdict(lambda: defaultdict(list))
    for row in read_rows():
        if row["job"]["part"] == part:
            scores = {**row["scores"], "product": product(row["scores"]), "seconds": row["seconds"]}
            groups[row["job"]["method"]][row["job"]["concept"]].append(scores)
    table = {}
    for method, concepts in groups.items():
        names = next(iter(concepts.values()))[0]
        means = {name: [np.mean([s[name] for s in rows]) for rows in concepts.values()] for name in names}
        table[method] = {
            "runs": sum(map(len, concepts.values())),
            "settings": None if method in UNTRAINED else best_settings(SETTINGS_OF.get(method, method)),
            "mean": {name: round(float(np.mean(values)), 4) for name, values in means.items()},
            "interval_95": {name: _interval(values) for name, values in means.items()},
        }
    return table


def make_levers_table() -> dict:
    """By lever and learning rate: scores by passes, and passes to ENOUGH of the recipe's best score."""
    scores = {}
    for lever in LEVERS:
        for (rate, budget), score in sorted(mean_products("levers", lever).items()):
            scores.setdefault((lever, rate), {})[budget] = score
    costs = defaultdict(list)
    for row in read_rows():
        if row["job"]["part"] == "levers" and row["passes"] >= row["job"]["budgets"][-1]:
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


def _interval(values: list[float]) -> list[float]:
    rng = np.random.default_rng(0)
    means = rng.choice(values, (4000, len(values))).mean(1)
    return [round(float(x), 4) for x in np.percentile(means, (2.5, 97.5))]
