"""What the page sees of a run."""

import json
import os

import pytest

from dopsd_app.config import TrainConfig
from dopsd_app.jobs import promise
from dopsd_app.jobs.events import (
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
)
from dopsd_app.jobs.job import write_status
from dopsd_app.jobs.launcher import process_started
from dopsd_app.jobs.promise import Promise, keep_promise, read_promise, words_for_delay
from dopsd_app.jobs.watch import CURVE_POINTS, SHOWN_PREVIEWS, Rollout, RunWatcher, Samples, decimate


def test_a_curve_keeps_its_mean_and_has_at_most_500_points():
    points = [(step, float(step % 7)) for step in range(1, 10_001)]
    curve = decimate(points)
    assert len(curve) == CURVE_POINTS
    # 20 neighbours each: the first are the steps 1 to 20, with losses 1 2 3 4 5 6 0 ... = 1..20 modulo 7
    assert curve[0] == (10.5, sum(step % 7 for step in range(1, 21)) / 20)
    assert abs(sum(y for _, y in curve) / 500 - sum(y for _, y in points) / 10_000) < 1e-12


def test_a_short_curve_is_left_as_it_is():
    assert decimate([(1, 0.5), (2, 0.25)]) == ((1.0, 0.5), (2.0, 0.25))
    assert decimate([]) == ()
    assert len(decimate([(step, 1.0) for step in range(1, 502)])) == 251  # pairs, and one alone


def test_a_look_tells_pace_time_left_and_pictures(new_run):
    run = new_run(TrainConfig(steps=100))
    for step in range(1, 41):
        append_event(run.events_file, StepDone(step, 0.5, 1.0, 9.0 if step <= 20 else 2.0, 3 * 10**9))
    append_event(run.events_file, PreviewSaved(0, "samples", ("previews/base_0.png",), ("a dog",), 7))
    append_event(run.events_file, PreviewSaved(20, "rollout", ("previews/s.webp", "previews/t.webp")))
    append_event(run.events_file, PreviewSaved(40, "samples", ("previews/1.webp",), ("a dog",), 7))
    for measured in (HealthMeasured(0, 0.1, 1, 0, 1.0), HealthMeasured(40, 0.5, 0.9, 0.2, 1.0)):
        append_event(run.events_file, measured)
        append_event(
            run.events_file, HealthMeasured(0, 0.1, 1, 0, 1.0)
        )  # a resumed run measures the base again
    append_event(run.events_file, Warned(40, "Something small."))
    write_status(run, state="queued", step=40)
    watcher = RunWatcher()
    view = watcher.read(run)
    assert view.seconds_per_step == 2.0  # of the last 20 steps, not of all
    assert view.seconds_left is None  # it does not train now
    assert view.memory == 3 * 10**9
    assert view.rollouts == (Rollout(20, (run.previews / "s.webp",), (run.previews / "t.webp",)),)
    base, newest = (run.previews / "base_0.png",), (run.previews / "1.webp",)
    assert view.samples == Samples(("a dog",), 7, (), ((0, base), (40, newest)))
    assert view.sheets == ()
    assert [health.step for health in view.health] == [0, 40]
    assert view.warnings == ("Something small.",) and view.check == ""

    append_event(run.events_file, LoraChecked(40, True, "The LoRA file is good."))
    assert watcher.read(run).check == "The LoRA file is good."


PROMISE = Promise(loading=10.0, seconds_per_step=1.0, previews=0.5, slowness=1.0)


def told(seconds, first=1):
    return [StepDone(step, 0.5, 1.0, each, 0) for step, each in enumerate(seconds, start=first)]


@pytest.fixture
def load(monkeypatch):
    """Sets the load average of a computer with two cores."""
    monkeypatch.setattr(promise, "count_cores", lambda: 2)
    return lambda average: monkeypatch.setattr(promise, "average_load", lambda: average)


def test_a_run_that_takes_far_longer_says_so_and_why(load):
    """100 steps of a second with half as much for previews after 10 s: 160 s; of 8 s each about 20 min."""
    load(2.0)  # its own two threads
    delay = words_for_delay(PROMISE, told([9.0, 8.0, 8.0, 8.0]), 100)
    assert delay == "It takes longer than planned: about 20 min instead of about 3 min."
    load(6.0)
    because = ", since other programs use the processor."
    assert words_for_delay(PROMISE, told([9.0, 8.0, 8.0, 8.0]), 100) == delay[:-1] + because


@pytest.mark.parametrize(
    ("seconds", "total"),
    [
        ([9.0, 8.0, 8.0], 100),  # two steps tell nothing yet, and the first is always slow
        ([9.0, 1.4, 1.4, 1.4], 100),  # not far off
        ([9.0, 0.1, 0.1, 0.1], 100),
        ([3.0, 3.0, 3.0, 3.0], 5),  # 32 s in place of 18: nobody waits by that
    ],
)
def test_what_is_about_as_promised_is_not_spoken_of(load, seconds, total):
    load(9.0)
    assert words_for_delay(PROMISE, told(seconds), total) == ""


def test_without_a_promise_nothing_is_compared(new_run):
    run = new_run(TrainConfig(steps=100))
    assert read_promise(run.path) is None
    (run.path / "promise.json").write_text('{"schema": 9}')
    assert read_promise(run.path) is None
    assert words_for_delay(None, told([9.0] * 9), 100) == ""


def test_what_a_slow_moment_took_counts_only_once(load):
    """90 fast steps, and 10 slow ones at their end: what is over is not reckoned at the pace of now."""
    load(0.0)
    assert words_for_delay(PROMISE, told([1.0] * 90 + [5.0] * 10), 100) == ""


def test_the_time_left_is_the_promise_until_steps_are_measured(new_run, load):
    load(0.0)
    run = new_run(TrainConfig(steps=100))
    own = {"pid": os.getpid(), "pid_started": process_started(os.getpid())}
    keep_promise(run.path, PROMISE)
    watcher = RunWatcher()
    write_status(run, state="loading", **own)
    assert watcher.read(run).seconds_left == 10 + 150
    for step in told([9.0, 8.0, 8.0, 8.0]):
        append_event(run.events_file, step)
    write_status(run, state="training", step=4)
    view = watcher.read(run)
    assert view.seconds_left == 96 * 1.5 * 8.0
    [delay] = view.warnings
    assert delay.startswith("It takes longer than planned")
    write_status(run, state="stopped", pid=None, pid_started=None)
    assert watcher.read(run).warnings == ()


def test_steps_that_a_resume_repeats_count_once(new_run):
    run = new_run(TrainConfig(steps=10))
    for step in (1, 2, 3):
        append_event(run.events_file, StepDone(step, 1.0, 1.0, 1.0, 0))
    append_event(run.events_file, PreviewSaved(3, "samples", ("previews/3.webp",), ("a dog",), 0))
    watcher = RunWatcher()
    assert len(watcher.read(run).curve) == 3
    append_event(run.events_file, Resumed(1))
    append_event(run.events_file, StepDone(2, 0.5, 1.0, 1.0, 0))
    view = watcher.read(run)
    assert view.curve == ((1.0, 1.0), (2.0, 0.5))
    assert view.samples == Samples()


def test_previews_of_an_earlier_version_are_shown_as_it_saved_them(new_run):
    run = new_run(TrainConfig(steps=10))
    for step in (2, 4):
        append_event(run.events_file, PreviewSaved(step, "rollout", (f"previews/{step}_rollout.webp",)))
        append_event(run.events_file, PreviewSaved(step, "samples", (f"previews/{step}_samples.webp",)))
    view = RunWatcher().read(run)
    assert view.sheets == tuple((step, run.previews / f"{step}_samples.webp") for step in (2, 4))
    assert view.samples == Samples()
    assert view.rollouts[-1] == Rollout(4, (run.previews / "4_rollout.webp",), ())


def test_all_samples_can_be_asked_for_and_of_many_the_newest_and_the_base_are_shown_at_once(new_run):
    run = new_run(TrainConfig(steps=100))
    for step in range(0, 101):
        append_event(run.events_file, PreviewSaved(step, "samples", (f"previews/{step}.webp",), ("a",)))
        append_event(run.events_file, PreviewSaved(step, "rollout", ("previews/s.webp", "previews/t.webp")))
    view = RunWatcher().read(run)
    assert [step for step, _ in view.samples.steps] == list(range(101)) and len(view.rollouts) == 101
    steps = [step for step, _ in view.samples.few.steps]
    assert len(steps) == 1 + SHOWN_PREVIEWS and steps[0] == 0 and steps[-12:] == list(range(89, 101))


def test_the_time_of_a_run_is_that_of_its_processes(new_run):
    """Two processes of 60 and 30 s, and an hour between them; while one works it is not told."""
    run = new_run(TrainConfig(steps=2))
    told = [
        (0, MemoryPlanned(0, 1, 1, "")),
        (60, Stopped(1)),
        (3660, MemoryPlanned(1, 1, 1, "")),
        (3680, StepDone(2, 1.0, 1.0, 1.0, 0)),
        (3690, Finished(2, "lora")),
    ]
    seconds = []
    for time, event in told:
        append_event(run.events_file, event)
        lines = run.events_file.read_text().splitlines()
        lines[-1] = json.dumps(json.loads(lines[-1]) | {"time": float(time)})
        run.events_file.write_text("\n".join(lines) + "\n")
        seconds.append(RunWatcher().read(run).seconds)
    assert seconds == [None, 60, None, None, 90]
