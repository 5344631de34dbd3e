"""What the page sees of a run."""

from dopsd_app.config import TrainConfig
from dopsd_app.jobs.events import (
    HealthMeasured,
    LoraChecked,
    PreviewSaved,
    Resumed,
    StepDone,
    Warned,
    append_event,
)
from dopsd_app.jobs.job import write_status
from dopsd_app.jobs.watch import CURVE_POINTS, RunWatcher, decimate


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
    append_event(run.events_file, PreviewSaved(20, "rollout", ("previews/000020_rollout.webp",)))
    append_event(run.events_file, PreviewSaved(40, "samples", ("previews/000040_samples.webp",)))
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
    assert [p.step for p in view.rollouts] == [20] and [p.step for p in view.samples] == [40]
    assert [health.step for health in view.health] == [0, 40]
    assert view.warnings == ("Something small.",) and view.check == ""

    append_event(run.events_file, LoraChecked(40, True, "The LoRA file is good."))
    assert watcher.read(run).check == "The LoRA file is good."


def test_steps_that_a_resume_repeats_count_once(new_run):
    run = new_run(TrainConfig(steps=10))
    for step in (1, 2, 3):
        append_event(run.events_file, StepDone(step, 1.0, 1.0, 1.0, 0))
    append_event(run.events_file, PreviewSaved(3, "samples", ("previews/000003_samples.webp",)))
    watcher = RunWatcher()
    assert len(watcher.read(run).curve) == 3
    append_event(run.events_file, Resumed(1))
    append_event(run.events_file, StepDone(2, 0.5, 1.0, 1.0, 0))
    view = watcher.read(run)
    assert view.curve == ((1.0, 1.0), (2.0, 0.5))
    assert view.samples == ()
