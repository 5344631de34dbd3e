"""What the scores of teacher checks are worth: against the truth, and against other ways to score."""

from dataclasses import astuple, dataclass, replace

import numpy as np
from torch import Tensor

from benchmarks.statistics import best_thresholds, rank_correlation, roc_area
from dopsd_app.checks.teacher_check import compare
from dopsd_app.checks.verdict import PARTLY, SEES, CheckRow, score_rows

# How many of a creature's six attributes a teacher shows because it sees the creature: where "partly" and
# "sees" begin. Half a one is about what chance gives and takes; half of the six is much of what makes it.
TRUTHS = {"partly": 1.0, "sees": 3.0}
VERDICTS = ("does not", "partly", "sees")


@dataclass(frozen=True)
class Outcome:
    """One teacher on one creature."""

    truth: float  # of six attributes, how many more it shows than with other creatures in view
    over_student: float  # how many more than the student
    features: dict[str, dict[str, Tensor]]  # whose pictures: kind of features: (4, D)


@dataclass(frozen=True)
class Scoring:
    """One way to score; the defaults are the product's."""

    control: str = "grey"
    features: tuple[str, ...] = ("eyes", "colours")
    together: str = "lower"  # of the kinds' similarities: the "lower", or their "mean"
    formula: str = "guarded"  # "guarded": verdict.score_rows; "difference" to the control; "gain" without it

    def __call__(self, outcome: Outcome) -> float:
        names = ("crops", f"shown {self.control}", "student", "teacher", f"control {self.control}")
        kinds = [[outcome.features[name][kind] for name in names] for kind in self.features]
        if self.together == "lower":
            rows = compare(*zip(*kinds, strict=True))
        else:
            each = [compare(*([features] for features in kind)) for kind in kinds]
            mean = np.mean([[astuple(row) for row in rows] for rows in each], axis=0)
            rows = tuple(CheckRow(*row) for row in mean.tolist())
        if self.formula == "gain":
            rows = tuple(replace(row, control=row.student) for row in rows)
        if self.formula == "difference":
            rows = tuple(replace(row, student=row.control) for row in rows)
        return score_rows(rows)


CANDIDATES = {
    "the product's": Scoring(),
    "control: another creature": Scoring(control="another creature"),
    "control: tiles shuffled": Scoring(control="tiles shuffled"),
    "control: the set's pictures paired wrongly": Scoring(control="paired wrongly"),
    "no control: the gain alone": Scoring(formula="gain"),
    "difference to the control, unguarded": Scoring(formula="difference"),
    "features: the eyes alone": Scoring(features=("eyes",)),
    "features: the eyes alone, by position": Scoring(features=("eyes by position",)),
    "features: the eyes alone, before the merger": Scoring(features=("eyes before the merger",)),
    "features: colours alone": Scoring(features=("colours",)),
    "features: pixels alone": Scoring(features=("pixels",)),
    "features: eyes and colours, their mean": Scoring(together="mean"),
    "features: eyes and pixels": Scoring(features=("eyes", "pixels")),
}


def classes(values: np.ndarray, partly: float, sees: float) -> np.ndarray:
    """0 does not see, 1 partly, 2 sees."""
    return (values >= partly).astype(int) + (values >= sees)


def count_classes(found: np.ndarray) -> dict[str, int]:
    return {name: int((found == number).sum()) for number, name in enumerate(VERDICTS)}


def count_verdicts(scores: np.ndarray) -> dict[str, int]:
    """How many scores come to each of the product's verdicts."""
    return count_classes(classes(scores, PARTLY, SEES))


def confusion(scores: np.ndarray, truths: np.ndarray, partly: float, sees: float) -> dict[str, dict]:
    """Truth: verdict: how many."""
    verdicts, right = classes(scores, partly, sees), classes(truths, *TRUTHS.values())
    return {
        true: {
            name: int(((right == row) & (verdicts == column)).sum()) for column, name in enumerate(VERDICTS)
        }
        for row, true in enumerate(VERDICTS)
    }


def summarize(cases: list[dict[str, Outcome]]) -> dict:
    """Everything that is claimed; thresholds are fitted to half of the creatures, the others are held out."""
    truths = np.array([[outcome.truth for outcome in case.values()] for case in cases])
    over_student = np.array([[outcome.over_student for outcome in case.values()] for case in cases])
    scores = {
        name: np.array([[scoring(outcome) for outcome in case.values()] for case in cases])
        for name, scoring in CANDIDATES.items()
    }
    product, fitted, held_out = scores["the product's"], slice(0, None, 2), slice(1, None, 2)
    positive = {name: truths >= least for name, least in TRUTHS.items()}
    right = classes(truths, *TRUTHS.values())
    thresholds = dict(
        zip(TRUTHS, best_thresholds(product[fitted].ravel(), right[fitted].ravel()), strict=True)
    )
    return {
        "truth_begins": TRUTHS,
        "candidates": {
            name: {
                "rank_correlation": rank_correlation(values.ravel(), truths.ravel()),
                "rank_correlation_over_student": rank_correlation(values.ravel(), over_student.ravel()),
                **{f"roc_area_{key}": roc_area(values.ravel(), positive[key].ravel()) for key in TRUTHS},
            }
            for name, values in scores.items()
        },
        "teachers": {
            name: {
                "truth": spread(truths[:, column]),
                "over_student": spread(over_student[:, column]),
                "score": spread(product[:, column]),
                "mean_scores_of_the_candidates": {
                    candidate: float(values[:, column].mean()) for candidate, values in scores.items()
                },
            }
            for column, name in enumerate(cases[0])
        },
        "fitted_thresholds": thresholds,
        "thresholds_in_code": {"partly": PARTLY, "sees": SEES},
        "confusion_on_the_other_half": {
            "fitted": confusion(product[held_out].ravel(), truths[held_out].ravel(), **thresholds),
            "in_code": confusion(product[held_out].ravel(), truths[held_out].ravel(), PARTLY, SEES),
        },
        "cases_score_and_truth": {
            name: " ".join(f"{s:.2f}:{t:.2f}" for s, t in zip(product[:, c], truths[:, c], strict=True))
            for c, name in enumerate(cases[0])
        },
    }


def spread(values: np.ndarray) -> dict[str, float]:
    return {"mean": float(values.mean()), "deviation": float(values.std())}
