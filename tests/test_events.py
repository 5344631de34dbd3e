import json
import time

import pytest

from dopsd_app.jobs.events import (
    EVENTS,
    CaptionWritten,
    CheckpointSaved,
    EventReader,
    Failed,
    Finished,
    HealthMeasured,
    LoraChecked,
    MemoryPlanned,
    PreviewSaved,
    Resumed,
    StepDone,
    Stopped,
    Warned,
    append_event,
    read_events,
)
from dopsd_app.models.base_report import Finding
from dopsd_app.progress import DownloadProgress, PhaseProgress

ONE_OF_EACH = [
    DownloadProgress("downloading", 1_000_000, 3_000_000, 500_000.0),
    PhaseProgress("encoding", 1, 6),
    MemoryPlanned(0, 7_000_000_000, 8_000_000_000, "As it is."),
    Resumed(0),
    StepDone(1, 0.25, 1.5, 0.1, 0),
    PreviewSaved(1, "rollout", ("previews/000001_student_0.webp", "previews/000001_teacher_0.webp")),
    PreviewSaved(0, "samples", ("previews/base_0.png",), ("a dog",), 7),
    HealthMeasured(1, 0.5, None, 0.25, 1.0),
    CheckpointSaved(1, "checkpoints/000001"),
    CaptionWritten(1, "a1b2", "short", "zorp on a sofa", True),
    Warned(1, "a “sentence” with ünusual letters\nand a second line"),
    LoraChecked(1, True, "loads"),
    Finding("files", True, "Each holds what the Hub says.", 1.5),
    Finished(1, "pytorch_lora_weights.safetensors"),
    Stopped(1),
    Failed(1, "The disk is full."),
]


def step_done(step):
    return StepDone(step, 1 / step, 1.0, 0.5, 0)


def append_all(path, events):
    for event in events:
        append_event(path, event)


def test_every_event_comes_back_as_it_was_told(tmp_path):
    file = tmp_path / "events.jsonl"
    append_all(file, ONE_OF_EACH)
    assert {type(event) for event in ONE_OF_EACH} == set(EVENTS.values())
    assert read_events(file) == ONE_OF_EACH
    assert len(file.read_text().splitlines()) == len(ONE_OF_EACH)


def test_a_run_that_told_nothing_has_no_events(tmp_path):
    assert read_events(tmp_path / "events.jsonl") == []


@pytest.mark.parametrize("bytes_left", [1, 20, 60])
def test_a_torn_last_line_is_dropped_and_does_not_swallow_the_next(tmp_path, bytes_left):
    file = tmp_path / "events.jsonl"
    append_all(file, [step_done(1), step_done(2)])
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + lines[1][:bytes_left])
    assert read_events(file) == [step_done(1)]
    append_event(file, step_done(3))
    assert read_events(file) == [step_done(1), step_done(3)]


def test_steps_that_a_resume_repeats_count_once(tmp_path):
    file = tmp_path / "events.jsonl"
    first_life = [PhaseProgress("loading", 1, 1), *map(step_done, range(1, 8)), Failed(7, "no power")]
    append_all(file, first_life)
    append_all(file, [Resumed(5), StepDone(6, 9.0, 1.0, 0.5, 0)])
    expected = [*first_life[:6], Resumed(5), StepDone(6, 9.0, 1.0, 0.5, 0)]
    assert read_events(file) == expected


def test_a_reader_follows_a_file_while_it_grows(tmp_path):
    file = tmp_path / "events.jsonl"
    reader = EventReader(file)
    assert reader.poll() == []
    append_all(file, [step_done(1), step_done(2)])
    assert reader.poll() == [step_done(1), step_done(2)]
    assert reader.poll() == []
    append_all(file, [Resumed(1), step_done(2)])
    assert reader.poll() == [Resumed(1), step_done(2)]
    assert reader.events == [step_done(1), Resumed(1), step_done(2)] == read_events(file)


def test_a_reader_waits_for_the_end_of_a_line(tmp_path):
    file = tmp_path / "events.jsonl"
    append_event(file, step_done(1))
    whole = file.read_bytes()
    reader = EventReader(file)
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        assert reader.poll() == []
    file.write_bytes(whole)
    assert reader.poll() == [step_done(1)]


def test_looking_at_a_long_run_again_is_quick(tmp_path):
    file = tmp_path / "events.jsonl"
    append_event(file, step_done(1))
    line = json.loads(file.read_text())
    file.write_text("".join(json.dumps(line | {"step": step}) + "\n" for step in range(1, 10_001)))
    reader = EventReader(file)
    assert len(reader.poll()) == 10_000
    seconds = []
    for step in range(10_001, 10_011):
        append_event(file, step_done(step))
        started = time.perf_counter()
        assert len(reader.poll()) == 1
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.02


def test_what_another_version_told_is_passed_over(tmp_path):
    file = tmp_path / "events.jsonl"
    earlier = {
        "event": "HealthMeasured",
        "time": 1.0,
        "step": 1,
        "concept": 0.5,
        "following": 1.0,
        "drift": 0.0,
    }
    file.write_text(json.dumps(earlier) + "\n" + json.dumps({"event": "Sung", "time": 1.0}) + "\n")
    append_event(file, Resumed(2))
    assert read_events(file) == [Resumed(2)]
