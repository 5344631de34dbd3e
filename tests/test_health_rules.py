"""What health scores mean: the best step, and warnings."""

import pytest

from dopsd_app.checks.health_rules import (
    CLOSE,
    LEAST_FOLLOWING,
    LEAST_JUDGED_QUALITY,
    LEAST_QUALITY,
    MOST_DRIFT,
    best_step,
    complaint,
    merit,
)
from dopsd_app.jobs.events import HealthMeasured, Resumed, measured_in

BASE = HealthMeasured(0, 0.1, 1.0, 0.0, 1)


def test_merit_is_what_was_learned_by_what_was_kept():
    assert merit(HealthMeasured(1, 0.6, 0.8, 0.25, 0.9), BASE) == pytest.approx(0.5 * 0.9 / 1.25)
    assert merit(HealthMeasured(1, 0.6, None, 0.25, 0.9), BASE) == pytest.approx(0.5 * 0.9 / 1.25)
    assert merit(HealthMeasured(1, 0.6, LEAST_FOLLOWING / 4, 0.25, 1), BASE) == pytest.approx(0.5 / 4 / 1.25)
    assert merit(BASE, BASE) == 0
    assert merit(HealthMeasured(1, 0.0, -0.5, 0.0, 1), BASE) == 0  # two losses are no gain


def test_the_last_of_the_kept_steps_that_are_close_to_the_best_wins():
    concepts = {10: 0.5, 20: 0.9, 30: 0.1 + 0.81 * CLOSE, 40: 0.1 + 0.79 * CLOSE}  # .1 is the base's
    measured = [BASE, *(HealthMeasured(step, concept, 1, 0, 1) for step, concept in concepts.items())]
    assert best_step(measured, {10, 20, 30, 40}) == 30
    assert best_step(measured, {10, 20, 40}) == 20
    # Step 20 is gone: others are not close to what it was. Each time the best went, the bar would fall.
    assert best_step(measured, {10, 40}) == 40
    assert best_step([*measured, HealthMeasured(50, 0.4, 1, 0, 1)], {10, 40, 50}) == 40
    assert best_step(measured, {50}) is None
    assert best_step([], {10}) is None
    assert best_step(measured[1:], {10, 20}) is None  # without the base there is nothing to compare with
    nothing = HealthMeasured(50, 0.0, 1, 0, 1)
    assert best_step([*measured, nothing], {50}) == 50


def test_each_step_counts_as_it_was_measured_last():
    again = HealthMeasured(10, 0.7, 1, 0, 1)
    assert measured_in([HealthMeasured(10, 0.5, 1, 0, 1), Resumed(5), BASE, again]) == (BASE, again)


def test_what_falls_apart_or_drifts_or_no_longer_listens_is_told():
    for judged, least in ((False, LEAST_QUALITY), (True, LEAST_JUDGED_QUALITY)):
        for following in (1, None):
            assert complaint(HealthMeasured(1, 0.5, following, 0, least), judged) == ""
        assert "getting worse" in complaint(HealthMeasured(1, 0.5, -1, 9, least - 0.01), judged)
        assert "prompt" in complaint(HealthMeasured(1, 0.5, LEAST_FOLLOWING - 0.01, 0, 1), judged)
        assert complaint(HealthMeasured(1, 0.5, LEAST_FOLLOWING + 0.01, 0, 1), judged) == ""
    drifts = HealthMeasured(1, 0.5, 1, MOST_DRIFT + 0.01, 1)
    assert "other things" in complaint(drifts, judged=False)
    assert complaint(drifts, judged=True) == ""  # the built-in base's always do
