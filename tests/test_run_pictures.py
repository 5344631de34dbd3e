"""How the page shows what a run draws, its curves and its end: plain functions of plain values."""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from dopsd_app.jobs.events import HealthMeasured
from dopsd_app.jobs.runs import default_runs_dir
from dopsd_app.jobs.status import Status
from dopsd_app.jobs.watch import Rollout, RunView, Samples, thin_out
from dopsd_app.ui import run_charts, run_ending
from dopsd_app.ui.run_pictures import (
    NEWEST,
    RunPictures,
    comparing_steps,
    how_it_learns,
    matrix,
    pair,
    rollout,
    run_samples,
)
from tests.support.checkpoint_files import leave_checkpoint
from tests.support.finished_run import pocket_config
from tests.support.layout import lay_out
from tests.support.pictures import make_picture

PROMPTS = ("a dog <at> sea", "a cat & a dog")


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Makes samples of so many steps after the base's, whose pictures are on the disk."""
    monkeypatch.setenv("DOPSD_RUNS", str(tmp_path / "runs"))

    def make(steps, prompts=PROMPTS, sources=()):
        folder = default_runs_dir() / "20261129-120000-my-dog-0123456789ab" / "previews"
        folder.mkdir(parents=True, exist_ok=True)

        def file(name: str) -> Path:
            make_picture(0, 16, 16).save(folder / name)
            return folder / name

        numbers = range(len(prompts))
        base = tuple(file(f"base_{number}.png") for number in numbers)
        of_steps = (
            (50 * step, tuple(file(f"{50 * step:06d}_sample_{number}.webp") for number in numbers))
            for step in range(1, steps + 1)
        )
        given = tuple(file(f"source_{number}.webp") if number in sources else None for number in numbers)
        return Samples(prompts, 7, given if sources else (), ((0, base), *of_steps))

    return make


def heads(html):
    return re.findall("<th scope='col'>(.*?)</th>", html)


def test_samples_stand_by_prompt_and_step_with_the_base_first(drawn):
    html = matrix(drawn(2))
    assert heads(html) == ["Base", "Step 50", "Step 100"]
    assert html.count("<tbody") == 2 and html.count("class=enlarge") == 6
    # Arrows walk through the steps of one prompt; what stands below says step, seed and prompt.
    assert "data-group='prompt-0' data-about='the run&#x27;s seed 7 · a dog &lt;at&gt; sea'" in html
    assert "<at>" not in html


def test_of_edits_the_source_comes_first_where_there_is_one(drawn):
    html = matrix(drawn(1, sources=(1,)))
    assert heads(html) == ["Source", "Base", "Step 50"]
    assert "<td></td>" in html and html.count("class=enlarge") == 5


def test_many_pictures_weigh_little(drawn):
    words = tuple(
        f"a dog number {number} on a hill, and much more about the weather there" for number in range(8)
    )
    html = matrix(drawn(23, words))
    assert html.count("<img") == 8 * 24
    assert len(html.encode()) < 60_000


def test_a_picture_that_is_gone_leaves_its_place_empty(drawn):
    samples = drawn(1)
    samples.steps[1][1][0].unlink()
    assert "<td></td>" in matrix(samples)


def test_any_two_steps_stand_side_by_side(drawn):
    html = pair(drawn(3), 50, 150)
    assert html.count("<section") == 2
    assert re.findall("<figcaption>(.*?)</figcaption>", html) == ["Step 50", "Step 150"] * 2
    assert pair(Samples(), None, None) == ""


def test_a_chosen_step_stays_whatever_is_left_out_of_the_matrix(drawn):
    view = view_of("training", (), samples=drawn(60, ("a dog",)))
    parts = lay_out(lambda _: RunPictures(run_samples(), *comparing_steps(), *how_it_learns()))
    shown = parts.values(view, {parts.left: 100, parts.right: NEWEST})
    assert ("Step 100", 100) in shown[parts.left]["choices"] and len(shown[parts.left]["choices"]) == 62
    assert re.findall("<figcaption>(.*?)</figcaption>", shown[parts.pair][1]()) == ["Step 100", "Step 3000"]
    assert "Step 100" not in (columns := heads(shown[parts.samples][1]())) and len(columns) == 25


def test_a_rollout_is_a_row_of_states_of_each(drawn):
    files = [file for _, pictures in drawn(2).steps for file in pictures]
    html = rollout(Rollout(50, tuple(files[:2]), tuple(files[2:4])))
    assert "--states:2" in html and html.count("<img") == 4
    assert html.index("Student</span>") < html.index("Teacher</span>")
    # An earlier version saved all of it in one picture.
    assert rollout(Rollout(50, (files[0],), ())).count("<img") == 1


def test_what_is_too_much_to_show_is_thinned_out_evenly_but_for_the_newest():
    assert thin_out([1, 2, 3], 4) == [1, 2, 3]
    chosen = thin_out(list(range(100)), 24)
    assert len(chosen) == 24 and chosen[12:] == list(range(88, 100))
    assert chosen[0] == 0 and chosen[11] == 87
    assert {after - before for before, after in pairwise(chosen[:12])} == {8, 7}


# --- curves


def test_smoothing_is_a_mean_of_what_was_so_far():
    assert run_charts.smooth([(1, 4.0), (2, 8.0)], 0.0) == [(1, 4.0), (2, 8.0)]
    # 0.8 of what counted so far: (0.8 * 0.2 * 4 + 0.2 * 8) / (0.8 * 0.2 + 0.2)
    assert run_charts.smooth([(1, 4.0), (2, 8.0)], 0.8)[1][1] == pytest.approx(2.24 / 0.36)


def rows_of(plot):
    """How many points each line has; the lines themselves are always the same."""
    frame = plot["value"]
    return {name: len(rows) for name, rows in frame.dropna().groupby("of")}


def test_a_smoothed_loss_has_each_step_behind_it_and_other_runs_beside_it():
    points = [(float(step), 1.0) for step in range(1, 401)]
    assert rows_of(run_charts.curve(points, (), 0.0)) == {"This run": 400}
    plot = run_charts.curve(points, [points], 0.8)
    assert rows_of(plot) == {"Each step": 400, "This run": 400, "Other run 1": 134}  # every third
    assert list(plot["value"]["of"].unique()) == list(run_charts.LOSS_LINES)
    assert run_charts.curve(points[:1], (), 0.8)["visible"] is False


def test_beside_others_one_score_of_each_is_shown():
    measured = [HealthMeasured(step, 0.1 * step, None, 0.0, 1.0) for step in (0, 5)]
    alone = run_charts.health(measured, (), "Clean pictures")
    # Nothing tells how far prompts count.
    assert rows_of(alone) == {"Like your pictures": 2, "Clean pictures": 2, "Other prompts change": 2}
    beside = run_charts.health(measured, [measured], "Clean pictures")
    assert rows_of(beside) == {"This run": 2, "Other run 1": 2}
    assert set(beside["value"]["score"].dropna()) == {1.0}
    assert list(beside["value"]["of"].unique()) == list(run_charts.HEALTH_LINES)


# --- the end


def view_of(state, health, **changes):
    view = RunView(
        Status(state, step=100, steps=100), (), 1.0, 0, (), Samples(), (), tuple(health), (), None,
        "The LoRA file is good.", True, 2460.0, None,
    )  # fmt: skip
    return replace(view, **changes)


BASE = HealthMeasured(0, 0.1, 1.0, 0.0, 1.0)
GOOD = HealthMeasured(50, 0.8, 0.9, 0.2, 1.0)


@pytest.mark.parametrize(
    ("last", "why"),
    [
        (HealthMeasured(100, 0.85, 0.02, 0.2, 1.0), "later ones follow prompts less"),
        (HealthMeasured(100, 0.8, 0.9, 0.2, 0.5), "pictures of later ones are less clean"),
        (HealthMeasured(100, 0.85, 0.9, 1.9, 1.0), "later ones change pictures of other things more"),
        (HealthMeasured(100, 0.3, 0.9, 0.2, 1.0), "later ones are less like your pictures"),
        (HealthMeasured(100, 0.8, None, 0.2, 0.5), "pictures of later ones are less clean"),
    ],
)
def test_the_end_says_which_checkpoint_is_the_best_and_why(new_run, last, why):
    run = new_run(pocket_config(steps=100))
    for step in (50, 100):
        leave_checkpoint(run, step)
    view = view_of("finished", (BASE, GOOD, last))
    assert run_ending.headline(view) == "Finished in 41 min"
    said = run_ending.ending(run, view)
    assert f"Best checkpoint: step 50 ({why})." in said
    assert said[-1].startswith("Next: try it")


def test_the_end_says_in_one_sentence_how_healthy_it_is(new_run):
    run = new_run(pocket_config(steps=100))
    for step in (50, 100):
        leave_checkpoint(run, step)
    said = run_ending.ending(run, view_of("finished", (BASE, replace(GOOD, step=100))))
    assert "Best checkpoint: the last one, step 100." in said
    assert "Health: likeness to your pictures went from 0.10 to 0.80, prompts still count, and pictures are clean." in said  # fmt: skip  # noqa: E501
    blind = run_ending.ending(run, view_of("finished", (BASE, replace(GOOD, step=100, following=None))))
    assert "Health: likeness to your pictures went from 0.10 to 0.80, and pictures are clean." in blind
    worse = run_ending.ending(run, view_of("finished", (BASE, replace(GOOD, step=100, quality=0.3))))
    assert any(sentence.startswith("Health: Pictures are getting worse.") for sentence in worse)
    unmeasured = run_ending.ending(run, view_of("finished", ()))
    assert not any("Health" in sentence for sentence in unmeasured)


@pytest.mark.parametrize("state", ["stopped", "failed", "interrupted"])
def test_a_run_that_ended_early_says_what_to_do_next(new_run, state):
    run = new_run(pocket_config(steps=100))
    [alone] = run_ending.ending(run, view_of(state, ()))
    assert alone.startswith("Next: ") and "resume" in alone
    leave_checkpoint(run, 50)
    assert "resume from step 50" in run_ending.ending(run, view_of(state, ()))[-1]
