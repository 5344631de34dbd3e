"""The run of real size: what is told of each phase."""

from types import SimpleNamespace

import pytest

from benchmarks import real_size
from benchmarks.real_size import EXAMPLE, enlarge, measure
from dopsd_app.events import Finished, LoraChecked, PhaseProgress, PreviewSaved, Resumed, StepDone, Warned
from dopsd_app.pictures import read_examples


@pytest.fixture
def told(monkeypatch):
    """Events that come after so many seconds each, by the clock that the measurement reads."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(real_size.time, "perf_counter", lambda: clock.now)

    def tell(*events_and_seconds):
        for event, seconds in events_and_seconds:
            clock.now += seconds
            yield event

    return tell


def test_the_time_before_an_event_is_that_of_its_phase(told):
    found = measure(
        told(
            (PhaseProgress("loading", 0, 2), 0.0),
            (PhaseProgress("encoding", 0, 1), 0.3),
            (PhaseProgress("loading", 2, 2), 0.0),
            (Resumed(0), 0.2),
            (StepDone(1, 0.5, 1.0, 0.25, 0), 0.0),
            (PreviewSaved(1, "rollout", ()), 0.4),
            (StepDone(2, 0.75, 1.0, 0.125, 0), 0.0),
            (LoraChecked(2, True, "good"), 0.0),
            (Finished(2, "lora"), 0.0),
        )
    )
    phases = {"loading": 0.2, "encoding": 0.3, "training": 0.0, "drawing": 0.4, "checking": 0.0}
    assert found["seconds"] == phases
    assert (found["seconds_per_step"], found["losses"]) == ([0.25, 0.125], [0.5, 0.75])
    assert found["check"] == "good"


def test_a_preview_that_does_not_fit_is_no_measurement(told):
    with pytest.raises(RuntimeError, match="out of memory"):
        measure(told((Warned(3, "The preview of step 3 failed: out of memory"), 0.0)))


def test_pictures_of_the_example_are_as_large_as_they_are_wanted(tmp_path):
    examples = read_examples(enlarge(EXAMPLE, tmp_path / "pictures", 256), minimum_side=256).examples
    assert len(examples) == 6
    assert all(example.captions for example in examples)
