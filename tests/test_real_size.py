"""The run of real size: what is told of each phase."""

import json
from types import SimpleNamespace

import pytest
import torch

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


def test_what_went_wrong_stands_beside_what_was_measured_until_then(told):
    def fails():
        yield from told((StepDone(1, 0.5, 1.0, 0.25, 0), 1.5), (Warned(1, "The preview failed."), 0.0))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB. GPU 0 has a lot")

    found = measure(fails())
    assert found["warnings"] == ["The preview failed."]
    assert found["out_of_memory"] == "CUDA out of memory. Tried to allocate 1 GiB"
    assert (found["seconds"]["training"], found["losses"]) == (1.5, [0.5])


def test_a_case_takes_the_place_of_its_earlier_row_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(real_size, "RESULT", tmp_path / "real_size.json")
    row = {"card_gb": 12.0, "resolution": 512, "quantization": "nf4"}
    assert real_size.other_rows(row) == []
    rows = [row, row | {"card_gb": 24.0}, row | {"quantization": "none"}]
    real_size.RESULT.write_text(json.dumps({"rows": rows}))
    assert real_size.other_rows(row) == rows[1:]


def test_pictures_of_the_example_are_as_large_as_they_are_wanted(tmp_path):
    examples = read_examples(enlarge(EXAMPLE, tmp_path / "pictures", 256), minimum_side=256).examples
    assert len(examples) == 6
    assert all(example.captions for example in examples)
