"""How well a score tells what is true: rank correlation, ROC area, thresholds."""

import numpy as np


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(ranks(one), ranks(other))[0, 1])


def roc_area(scores: np.ndarray, positive: np.ndarray) -> float:
    """How often a positive case scores higher than a negative one."""
    count = positive.sum()
    above = ranks(scores)[positive].sum() - count * (count + 1) / 2
    return float(above / (count * (~positive).sum()))


def best_thresholds(scores: np.ndarray, classes: np.ndarray) -> tuple[float, float]:
    """Where classes 0, 1 and 2 part with the greatest mean of their shares of right answers; to 0.01."""
    steps = np.arange(0, 1, 0.01)

    def share_right(lower: float, upper: float) -> float:
        found = (scores >= lower).astype(int) + (scores >= upper)
        return float(np.mean([np.mean(found[classes == number] == number) for number in range(3)]))

    pairs = [(lower, upper) for lower in steps for upper in steps if lower < upper]
    return tuple(round(float(step), 2) for step in max(pairs, key=lambda pair: share_right(*pair)))
