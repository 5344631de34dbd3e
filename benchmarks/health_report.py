"""Is the rule for the best checkpoint any good, do warnings mean something? From the harness's lines."""

from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np

from dopsd_app.checks.health_rules import best_step, what_is_bad
from dopsd_app.jobs.events import HealthMeasured

RUINED_FOLLOWING, RUINED_QUALITY = 0.8, 0.6  # of the test's own scores; the base's own are 1.0 and 0.75
TAKEN = 0.25  # of the neutral prompts' pictures show the creature

Row = dict


def health_in(row: Row, eyes: str) -> tuple[HealthMeasured, HealthMeasured]:
    """The base's health and the LoRA's, with passes in place of steps."""
    base, lora = row["health"][eyes]["base"], row["health"][eyes]["lora"]
    return HealthMeasured(0, **base), HealthMeasured(row["passes"], **lora)


def judge_rule(runs: Iterable[list[Row]], eyes: str, product: Callable[[dict], float]) -> dict:
    """What the rule's choice is worth beside the last checkpoint and the best that there is, on the mean.

    `runs` are lists of one run's lines.
    """
    found = []
    for rows in runs:
        measured = [health_in(rows[0], eyes)[0], *(health_in(row, eyes)[1] for row in rows)]
        worth = {row["passes"]: product(row["scores"]) for row in rows}
        found.append(
            {
                "chosen_by_rule": worth[best_step(measured, worth)],
                "last": worth[max(worth)],
                "best_there_is": max(worth.values()),
            }
        )
    return {"runs": len(found)} | {
        name: round(float(np.mean([row[name] for row in found])), 4) for name in (found[0] if found else ())
    }


def judge_warnings(rows: Iterable[Row], eyes: str) -> dict[str, int]:
    """How often which warning came where pictures or following are ruined, others taken over, or neither."""
    counts = Counter()
    for row in rows:
        scores = row["scores"]
        ruined = scores["following"] < RUINED_FOLLOWING or scores["quality"] < RUINED_QUALITY
        state = "ruined" if ruined else "taken over" if scores["takeover"] > TAKEN else "well"
        fault = what_is_bad(health_in(row, eyes)[1], judged=eyes == "judge")
        counts[f"{state}: {fault or 'silent'}"] += 1
    return dict(sorted(counts.items()))
