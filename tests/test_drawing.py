"""Asking for pictures, and the warm worker that draws them: real processes on the tiny model."""

import errno
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from filelock import FileLock, Timeout
from PIL import Image
from safetensors.numpy import save

from dopsd_app import terminal
from dopsd_app.checks.verdict import read_check, rows_drawn
from dopsd_app.cli import main
from dopsd_app.errors import KnownFailure
from dopsd_app.hub.card_pictures import keep_picture
from dopsd_app.jobs import card, drawing, job, launcher, queue, runs
from dopsd_app.jobs.drawing import (
    BASE,
    CheckRequest,
    Column,
    PictureRequest,
    ask,
    cancel,
    is_of_today,
    list_drawings,
    read_drawing,
)
from dopsd_app.jobs.events import HealthMeasured, append_event
from dopsd_app.jobs.job import RunError
from dopsd_app.jobs.kinds import DRAW, TRAIN
from dopsd_app.jobs.queue import CUT_OFF
from dopsd_app.jobs.worker import BUSY, explain, work
from dopsd_app.train import train
from dopsd_app.ui.compare import history
from dopsd_app.ui.use_file import FINISHED, what_to_try
from tests.support.pictures import make_picture
from tests.support.waiting import ended, holding_the_card, wait_for

pytestmark = pytest.mark.process

DIES_AT_ONCE = (sys.executable, "-c", "")
TINY = (
    "base_model",
    "steps",
    "rollout_steps",
    "num_inference_steps",
    "batch_size",
    "rank",
    "resolution",
    "optimizer",
)


def worker_of():
    return psutil.Process(card.read_holder().pid)


def is_warm():
    """Whether a worker keeps the model loaded."""
    return bool((holder := card.read_holder()) and holder.warm)


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture).astype(int)


@contextmanager
def paused(runs_dir):
    """The worker stands still, but not in a moment in which it keeps others from deciding."""
    worker = worker_of()
    while True:
        worker.suspend()
        try:
            with FileLock(runs_dir / ".start.lock").acquire(timeout=0.2):
                break
        except Timeout:
            worker.resume()
    try:
        yield
    finally:
        worker.resume()


@pytest.fixture(scope="module")
def warm_runs(tmp_path_factory):
    """A folder of runs whose worker serves one test after the other, and outlives none of them."""
    runs_dir = tmp_path_factory.mktemp("warm") / "runs"
    yield runs_dir
    if card.read_holder():
        worker_of().kill()
    wait_for(card.is_card_free)


@pytest.fixture
def warm_run(warm_runs, dataset, tiny_config):
    """A run in that folder with a LoRA and the checkpoints 2 and 4."""
    if found := runs.list_runs(warm_runs):
        return found[-1]
    run = runs.create_run(warm_runs, replace(tiny_config, learning_rate=0.05), dataset)
    list(train(run))
    job.write_status(run, state="finished", step=4)
    return run


@pytest.fixture
def trained(warm_run, tmp_path, monkeypatch):
    """A copy of that run in a folder of its own, without a worker; other folders' have another card."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return runs.Run(shutil.copytree(warm_run.path, tmp_path / "runs" / warm_run.id))


def picture_of(run, **changes):
    """A pair of pictures: by the base, and by the run's LoRA."""
    column = Column(changes.pop("checkpoint", None), changes.pop("strength", 1.0))
    asked = {"run_id": run.id, "prompts": ("my dog",), "seeds": (1,), "columns": (BASE, column)}
    return PictureRequest(**asked | changes)


def base(drawing):
    return drawing.cell(0, 0)


def lora(drawing):
    return drawing.cell(0, 1)


# --- asking


def test_all_that_can_be_drawn_is_what_to_try(new_run, tiny_config, trained):
    values = [value for _, value in what_to_try(trained)[0]]
    assert values == [FINISHED, "Step 4", "Step 2"]
    shutil.rmtree(trained.path / "checkpoints")  # as a person may who needs the room
    assert what_to_try(trained) == ([(FINISHED, FINISHED)], FINISHED)
    assert what_to_try(new_run(tiny_config)) == ([], None)


def test_an_earlier_step_is_chosen_where_the_last_is_in_worse_health(trained):
    for health in ((0, 0.1, 1, 0, 1), (2, 0.9, 1, 0, 1), (4, 0.9, 1, 0, 0.5)):
        append_event(trained.events_file, HealthMeasured(*health))
    labels, chosen = what_to_try(trained)
    assert chosen == "Step 2"
    assert [label for label, _ in labels] == [FINISHED, "Step 4", "Step 2 (in better health)"]
    append_event(trained.events_file, HealthMeasured(4, 0.9, 1, 0, 0.9))
    labels, chosen = what_to_try(trained)
    assert chosen == FINISHED
    assert [label for label, _ in labels] == [FINISHED, "Step 4", "Step 2"]


def test_what_cannot_be_drawn_is_refused_in_a_sentence(new_run, tiny_config, trained):
    runs_dir = trained.runs_dir
    with pytest.raises(RunError, match=r"no checkpoint of step 3\. Checkpoints there are: 2, 4"):
        ask(runs_dir, picture_of(trained, checkpoint=3))
    other = new_run(tiny_config)
    with pytest.raises(RunError, match=r"no LoRA or checkpoint\. Checkpoints there are: none"):
        ask(runs_dir, picture_of(other))
    for stranger in ("../elsewhere", "", ".jobs"):
        with pytest.raises(RunError, match="not there any more"):
            ask(runs_dir, picture_of(trained, run_id=stranger))
    queue.enqueue(other)
    with pytest.raises(RunError, match=f"{other.id} waits to be trained"):
        ask(runs_dir, picture_of(trained))
    job.write_status(
        other, state="training", pid=os.getpid(), pid_started=launcher.process_started(os.getpid())
    )
    with pytest.raises(RunError, match=f"{other.id} is being trained, and has not come to its first step"):
        ask(runs_dir, picture_of(trained))
    job.write_status(other, state="stopped")
    with holding_the_card(runs_dir), pytest.raises(RunError, match="Another job is at work"):
        ask(runs_dir, picture_of(trained))
    assert not is_warm()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prompts": ()}, "Write a prompt first."),
        ({"prompts": ("  ",)}, "Write a prompt first."),
        ({"prompts": ("a dog",) * 9}, "There are 9 prompts. Draw 8 at most at a time: one a line."),
        ({"seeds": ()}, "Draw each prompt with 1 to 4 seeds, not with 0."),
        ({"seeds": (1, 2, 3, 4, 5)}, "Draw each prompt with 1 to 4 seeds, not with 5."),
        ({"seeds": (2**32,)}, "The seed is from 0 to 2**32 - 1, and the strength from 0 to 1.5."),
        ({"columns": (BASE, Column(strength=1.6))}, "the strength from 0 to 1.5"),
        ({"columns": (BASE,)}, "Choose what to compare with the base"),
        (
            {
                "prompts": ("a dog", "a cat", "a cow"),
                "seeds": (1, 2, 3, 4),
                "columns": (BASE, *[Column()] * 5),
            },
            "These are 72 pictures: 12 rows of 6. Draw 64 at most at a time",
        ),
    ],
)
def test_a_grid_that_makes_no_sense_or_is_too_large_is_refused(trained, changes, sentence):
    with pytest.raises(KnownFailure, match=re.escape(sentence)):
        ask(trained.runs_dir, picture_of(trained, **changes))
    assert not is_warm()


def test_what_was_drawn_is_listed_and_told_from_what_the_loras_draw_today(trained, monkeypatch):
    monkeypatch.setenv("DOPSD_RUNS", str(trained.runs_dir))

    def leave(state, columns, drawn):
        one = drawing.Drawing(
            job.create_job(trained.runs_dir, DRAW, asdict(picture_of(trained, columns=columns))).path
        )
        for column in range(drawn):
            make_picture(column, 32, 32).save(one.cell(0, column))
        job.write_status(one, state=state)
        return one

    final = leave("finished", (BASE, Column()), 2)
    cancelled = leave("stopped", (BASE, Column(2), Column(4)), 1)
    leave("failed", (BASE, Column()), 0)
    leave("queued", (BASE, Column()), 1)
    gone = leave("finished", (BASE, Column(3)), 2)
    earlier = {"run_id": trained.id, "prompt": "a dog", "seed": 1, "strength": 1.0, "checkpoint": None}
    job.write_status(job.create_job(trained.runs_dir, DRAW, earlier), state="finished")
    assert list_drawings(trained) == [gone, cancelled, final]
    assert [is_of_today(trained, one) for one in (gone, cancelled, final)] == [False, True, True]
    assert history([cancelled, gone], "").count("of an earlier training") == 1
    then = time.time() + 10
    os.utime(trained.lora_file, (then, then))  # trained further
    assert not is_of_today(trained, final) and list_drawings(trained) == [gone, cancelled, final]
    with pytest.raises(KnownFailure, match="of an earlier training"):
        keep_picture(trained, final.id)


def test_a_command_that_is_refused_says_how_to_stop_a_training_and_for_a_drawing_to_wait(
    new_run, tiny_config, capsys
):
    run = new_run(tiny_config)
    drawn = job.create_job(run.runs_dir, DRAW, {})
    ours = {"pid": os.getpid(), "pid_started": launcher.process_started(os.getpid())}
    command = ["generate", "latest", "--prompt", "tok", "--runs", str(run.runs_dir)]
    with holding_the_card(run.runs_dir):
        job.write_status(drawn, state="drawing", **ours)
        assert main(command) == 2
        told = capsys.readouterr().err
        assert "A drawing is at work" in told and told.endswith("Wait for its end.\n")
        job.write_status(drawn, state="stopped")
        job.write_status(run, state="training", **ours)
        with pytest.raises(RunError, match=f" stop {run.id} "), terminal.card(run.runs_dir):
            pass
        job.write_status(run, state="stopped")


def test_a_dead_workers_drawing_has_failed_and_old_drawings_are_swept(trained, monkeypatch):
    monkeypatch.setattr(launcher.launcher, "command", DIES_AT_ONCE)
    monkeypatch.setattr(drawing, "MAX_DRAWINGS", 3)
    asked = []
    for seed in range(5):
        asked.append(ask(trained.runs_dir, picture_of(trained, seeds=(seed,))))
        assert ended(asked[-1]).state == "interrupted"
        assert "ended without saying why" in asked[-1].status.reason
    assert asked[-1].asked == picture_of(trained, seeds=(4,))
    assert [one.path.exists() for one in asked] == [False, False, True, True, True]
    with pytest.raises(RunError, match="not kept any more"):
        read_drawing(trained.runs_dir, asked[0].id)
    with pytest.raises(RunError, match="not kept any more"):
        _ = asked[0].status
    assert read_drawing(trained.runs_dir, asked[2].id) == asked[2]


def test_drawings_are_swept_by_run_and_all_of_them_by_their_bytes(tmp_path):
    def leave(run_id):
        one = job.create_job(tmp_path, DRAW, asdict(PictureRequest(run_id, ("x",), (0,))))
        (one.path / "picture_1_1.png").write_bytes(bytes(1_000_000))
        job.write_status(one, state="finished")
        return one.path

    others, mine = leave("other"), [leave("mine") for _ in range(3)]
    job.sweep(tmp_path, DRAW, 2, lambda one: one.request["run_id"] == "mine")
    assert [path.exists() for path in (others, *mine)] == [True, False, True, True]
    job.sweep_bytes(tmp_path, DRAW, 10_000_000)
    assert others.exists()
    bytes_of_one = sum(file.stat().st_size for file in others.iterdir())
    job.sweep_bytes(tmp_path, DRAW, bytes_of_one * 5 // 2)
    assert [path.exists() for path in (others, *mine)] == [False, False, True, True]


def test_the_page_asks_without_torch(trained, tmp_path):
    (tmp_path / "asks.py").write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from dopsd_app.checks import verdict\n"
        "from dopsd_app.jobs import card, drawing, launcher\n"
        "launcher.launcher.command = (sys.executable, '-c', 'import time; time.sleep(120)')\n"
        "runs_dir = Path(sys.argv[1])\n"
        "asked = drawing.ask(runs_dir, drawing.PictureRequest(sys.argv[2], ('a dog',), (1,)))\n"
        "drawing.cancel(asked)\n"
        "launcher.launcher.stop(asked.status)\n"
        "print(asked.status, asked.asked, verdict.read_check(asked.path), card.read_holder())\n"
        "assert not {'torch', 'diffusers', 'transformers'} & sys.modules.keys()\n"
    )
    arguments = [sys.executable, tmp_path / "asks.py", trained.runs_dir, trained.id]
    paths = {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(arguments, env=os.environ | paths, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- the worker


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError(), "Out of memory. Close"),
        (OSError(errno.ENOSPC, "No space left on device"), "The disk is full. Free some space, then draw"),
        (RunError("It is gone."), "It is gone."),
        (ZeroDivisionError("by zero\nand more"), "Unexpected error, ZeroDivisionError: by zero. The whole"),
    ],
)
def test_a_failure_is_told_in_a_sentence(error, sentence, tmp_path):
    assert explain(error, job.create_job(tmp_path, DRAW, {})).startswith(sentence)


def test_a_warm_worker_loads_the_base_once_for_pictures_and_checks(warm_run, tiny_config):
    runs_dir = warm_run.runs_dir
    first = ask(runs_dir, picture_of(warm_run))
    assert ended(first).state == "finished"
    worker = worker_of()
    weak, earlier, last, again = (  # asked before any is drawn: only one checkpoint has its file at a time
        ask(runs_dir, picture_of(warm_run, **changes))
        for changes in ({"strength": 0.0}, {"checkpoint": 2}, {"checkpoint": 4}, {})
    )
    nothing_there = ask(runs_dir, CheckRequest(tiny_config, runs_dir / "nothing"))
    check = ask(runs_dir, CheckRequest(tiny_config, warm_run.dataset))
    assert [ended(one).state for one in (weak, earlier, last, again, check)] == ["finished"] * 5
    assert ended(nothing_there).reason.startswith("There is no folder")

    assert np.abs(pixels(base(first)) - pixels(lora(first))).max() > 2
    assert np.array_equal(pixels(base(first)), pixels(base(weak)))
    assert np.abs(pixels(base(weak)) - pixels(lora(weak))).max() <= 1
    assert np.abs(pixels(lora(earlier)) - pixels(lora(first))).max() > 2
    assert np.array_equal(pixels(lora(last)), pixels(lora(first)))
    assert np.array_equal(pixels(lora(again)), pixels(lora(first)))
    assert len(read_check(check.path).rows) == len(rows_drawn(check.path)) == 4

    # What goes wrong unexpectedly is told, traced, and the next is served; the run of a loaded LoRA can go.
    other = runs.Run(shutil.copytree(warm_run.path, runs_dir / "20990101-000000-other-0123456789ab"))
    good = other.lora_file.read_bytes()
    other.lora_file.write_bytes(b"nonsense")
    broken = ask(runs_dir, picture_of(other))
    assert "does not hold what was written" in ended(broken).reason
    other.check_file.unlink()  # as of a LoRA whose hash was not kept
    other.lora_file.write_bytes(save({"nobody.knows": np.zeros(2)}))
    broken = ask(runs_dir, picture_of(other))
    assert "Unexpected error" in ended(broken).reason
    assert "Traceback" in broken.log_file.read_text()
    other.lora_file.write_bytes(good)
    assert ended(ask(runs_dir, picture_of(other))).state == "finished"
    job.delete_job(other)
    with pytest.raises(RunError, match="not there any more"):
        ask(runs_dir, picture_of(other))
    assert ended(ask(runs_dir, picture_of(warm_run))).state == "finished"
    assert worker_of() == worker


def test_a_grid_that_is_cancelled_keeps_the_pictures_that_it_has(warm_run):
    columns = (BASE, Column(2), Column(4), Column())
    grid = ask(warm_run.runs_dir, picture_of(warm_run, prompts=("my dog", "a cat"), columns=columns))
    wait_for(lambda: len(grid.pictures) >= 2)
    cancel(grid)
    assert ended(grid).state == "stopped"
    assert 2 <= len(grid.pictures) < 8
    assert np.array_equal(pixels(base(grid)), pixels(base(ask_and_wait(warm_run))))
    assert list_drawings(warm_run)[1] == grid


def ask_and_wait(run):
    drawn = ask(run.runs_dir, picture_of(run))
    assert ended(drawn).state == "finished"
    return drawn


def test_the_worker_gives_way_to_a_training(warm_run, dataset, tiny_config, capsys):
    runs_dir = warm_run.runs_dir
    assert ended(ask(runs_dir, picture_of(warm_run))).state == "finished"
    settings = {**asdict(tiny_config), "steps": 2}
    settings = [f"{key}={value}" for key, value in settings.items() if key in TINY]
    folders = ["--images", str(dataset.examples[0].image.parent), "--runs", str(runs_dir)]
    command = ["train", *folders, "--detach", "--set", *settings]
    with paused(runs_dir):
        cut_off = [ask(runs_dir, picture_of(warm_run, seeds=(seed,))) for seed in (2, 3)]
        taken_back = ask(runs_dir, picture_of(warm_run, seeds=(4,)))
        cancel(taken_back)
        assert taken_back.status.state == "stopped"
        trainer = threading.Thread(target=main, args=(command,))
        trainer.start()
        queued = wait_for(lambda: [one for one in queue.waiting_jobs(runs_dir) if one.kind == TRAIN])[0]
        with pytest.raises(RunError, match="waits to be trained"):
            ask(runs_dir, picture_of(warm_run))
    trainer.join()
    assert "It is at work." in capsys.readouterr().out
    assert [ended(one).reason for one in cut_off] == [CUT_OFF] * 2
    assert taken_back.status.state == "stopped"
    wait_for(lambda: not queued.status.busy)
    assert queued.status.state == "finished", queued.log_file.read_text()


def test_a_killed_worker_leaves_nothing_locked_and_two_askers_start_one_new(warm_run):
    runs_dir = warm_run.runs_dir
    assert ended(ask(runs_dir, picture_of(warm_run))).state == "finished"
    card.ask_for_card()
    wait_for(lambda: not is_warm())
    asked = ask(runs_dir, picture_of(warm_run))
    wait_for(is_warm)
    worker_of().kill()
    assert ended(asked).state == "interrupted"
    # A killed process of many threads is gone a moment before the last of them has let go of its files.
    with holding_the_card(runs_dir):
        pass

    both = []
    askers = [
        threading.Thread(
            target=lambda seed=seed: both.append(ask(runs_dir, picture_of(warm_run, seeds=(seed,))))
        )
        for seed in (5, 6)
    ]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    wait_for(lambda: any(one.status.state == "loading" for one in both))
    loading = next(one for one in both if one.status.state == "loading")
    waiting = next(one for one in both if one != loading)
    cancel(loading)
    assert ended(waiting).state == "finished"
    assert loading.status.state == "stopped"
    assert not lora(loading).exists()
    assert asked.status.state == "interrupted"

    # The command line has the worker leave and draws in its own process.
    assert main(["generate", warm_run.id, "--runs", str(runs_dir), "--prompt", "my dog", "--seed", "6"]) == 0
    assert not is_warm()
    ours = warm_run.path / "generated" / "1-my-dog_6.png"
    if waiting.asked.seeds == (6,):
        assert np.array_equal(pixels(ours), pixels(lora(waiting)))


def test_a_worker_that_nobody_asks_ends(trained):
    one = job.create_job(trained.runs_dir, DRAW, asdict(picture_of(trained)))
    assert work(one, idle_seconds=0.3) == 0
    assert one.result == {"pictures": 2}
    with holding_the_card(trained.runs_dir):
        assert work(job.create_job(trained.runs_dir, DRAW, asdict(picture_of(trained)))) == BUSY
