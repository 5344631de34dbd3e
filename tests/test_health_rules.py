"""What health scores mean: the best step, warnings, and when to stop."""

import pytest

from dopsd_app.events import HealthMeasured, Resumed
from dopsd_app.health_rules import (
    LEAST_FOLLOWING,
    MOST_DRIFT,
    PATIENCE,
    best_step,
    complaint,
    measured_in,
    merit,
    stopped_improving,
)

BASE = HealthMeasured(0, 0.1, 1.0, 0.0)


def test_merit_is_what_was_learned_by_what_was_kept():
    assert merit(HealthMeasured(1, 0.6, 0.8, 0.25), BASE) == pytest.approx(0.5 * 0.8 / 1.25)
    assert merit(HealthMeasured(1, 0.6, None, 0.25), BASE) == pytest.approx(0.5 / 1.25)
    assert merit(BASE, BASE) == 0
    assert merit(HealthMeasured(1, 0.0, -0.5, 0.0), BASE) == 0  # two losses are no gain


def test_the_best_of_the_kept_steps_wins_and_the_later_of_equals():
    measured = [
        BASE,
        HealthMeasured(10, 0.5, 1, 0),
        HealthMeasured(20, 0.9, 1, 0),
        HealthMeasured(30, 0.5, 1, 0),
    ]
    assert best_step(measured, {10, 20, 30}) == 20
    assert best_step(measured, {10, 30}) == 30
    assert best_step(measured, {40}) is None
    assert best_step([], {10}) is None
    assert best_step(measured[1:], {10, 20}) is None  # without the base there is nothing to compare with


def test_each_step_counts_as_it_was_measured_last():
    again = HealthMeasured(10, 0.7, 1, 0)
    assert measured_in([HealthMeasured(10, 0.5, 1, 0), Resumed(5), BASE, again]) == (BASE, again)


def test_what_drifts_or_no_longer_listens_is_told():
    assert complaint(HealthMeasured(1, 0.5, 1, 0)) == complaint(HealthMeasured(1, 0.5, None, 0)) == ""
    assert "other things" in complaint(HealthMeasured(1, 0.5, 1, MOST_DRIFT + 0.01))
    assert "prompt" in complaint(HealthMeasured(1, 0.5, LEAST_FOLLOWING - 0.01, 0))


def test_it_has_stopped_improving_when_the_best_is_long_ago():
    better = [HealthMeasured(step, step / 100, 1, 0) for step in (10, 20, 30)]
    worse = [HealthMeasured(30 + n, 0.2, 1, 0) for n in range(1, PATIENCE + 1)]
    assert not stopped_improving([BASE])
    assert not stopped_improving([BASE, *better])
    assert not stopped_improving([BASE, *better, *worse[:-1]])
    assert stopped_improving([BASE, *better, *worse])
