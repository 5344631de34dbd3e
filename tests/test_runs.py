"""The life of a run, with real processes: `example_worker.py` counts where the real worker trains."""

import errno
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from filelock import FileLock
from PIL import Image

from dopsd_app.config import ConfigError, TrainConfig, make_config
from dopsd_app.data.pictures import Dataset, Example
from dopsd_app.jobs import job, launcher, queue, runs, worker
from dopsd_app.jobs.events import Failed, Resumed, StepDone, read_events
from dopsd_app.jobs.job import RunError
from tests.support.checkpoint_files import leave_checkpoint
from tests.support.small_disk import on_a_small_disk
from tests.support.waiting import holding_the_card, wait_for

pytestmark = pytest.mark.process

EXAMPLE_WORKER = (sys.executable, str(Path(__file__).parent / "support/example_worker.py"))
ROOT = Path(__file__).parent.parent


@pytest.fixture
def runs_dir(tmp_path, monkeypatch):
    """An empty folder of runs whose workers count; none of them outlives the test."""
    monkeypatch.setattr(launcher.launcher, "command", EXAMPLE_WORKER)
    folder = tmp_path / "runs"
    yield folder
    for run in runs.list_runs(folder):
        if run.status.live and run.status.pid != os.getpid():
            psutil.Process(run.status.pid).kill()


def new_run(runs_dir, name="counts", steps=20, checkpoint_every=5, pictures=()):
    config = make_config({"name": name, "steps": steps, "checkpoint_every": checkpoint_every})
    return runs.create_run(runs_dir, config, Dataset(tuple(pictures), ()))


def started_run(runs_dir, **settings):
    run = new_run(runs_dir, **settings)
    queue.enqueue(run)
    assert next_started(runs_dir) == run
    return run


def next_started(runs_dir):
    """The run that `start_next` has started."""
    job = queue.start_next(runs_dir)
    return job and runs.Run(job.path)


def wait_for_state(run, *states):
    wait_for(lambda: run.status.state in states or not (run.status.busy))
    assert run.status.state in states, f"{run.status}\n{run.log_file.read_text()}"
    return run.status


def wait_for_step(run, step):
    wait_for(lambda: any(isinstance(event, StepDone) and event.step >= step for event in events_of(run)))


def events_of(run):
    return read_events(run.events_file)


def steps_of(run):
    return [event.step for event in events_of(run) if isinstance(event, StepDone)]


# --- the folder


def test_a_new_run_holds_settings_and_pictures_and_waits_for_a_word(runs_dir, tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    run = new_run(
        runs_dir, name="Élan: d'été/∞", pictures=[Example(tmp_path / "red.png", ("a red", "square"))]
    )
    assert run.config == make_config({"name": "Élan: d'été/∞", "steps": 20, "checkpoint_every": 5})
    assert [path.suffix for path in sorted(run.dataset.iterdir())] == [".png", ".txt"]
    assert (run.status.state, run.status.step, run.status.steps) == ("draft", 0, 20)
    date, clock, *name, secret = run.id.split("-")
    assert (len(date), len(clock), name, len(secret)) == (8, 6, ["Elan", "d", "ete"], 12)
    assert queue.start_next(runs_dir) is None


@pytest.mark.parametrize("name", ["", "猫", "../../x", "a" * 300, 'CON<>:"|?*', "trailing. "])
def test_any_name_makes_a_folder_on_any_system(runs_dir, name):
    run = new_run(runs_dir, name=name)
    assert run.path.parent == runs_dir
    assert len(run.id) < 80
    assert not set(run.id) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")


def test_a_run_that_cannot_be_written_leaves_nothing(runs_dir, tmp_path):
    with pytest.raises(ValueError, match="missing"):
        new_run(runs_dir, pictures=[Example(tmp_path / "missing.png", ("a caption",))])
    assert list(runs_dir.iterdir()) == []


def test_runs_are_listed_newest_first_and_found_by_a_beginning(runs_dir):
    assert runs.list_runs(runs_dir) == []
    first, second, third = (new_run(runs_dir, name=name) for name in ("b", "c", "a"))
    (runs_dir / "notes").mkdir()
    assert runs.list_runs(runs_dir) == [third, second, first]
    assert runs.find_run(runs_dir, "latest") == third
    assert runs.find_run(runs_dir, second.id) == second
    assert runs.find_run(runs_dir, second.id[:17]) == second
    assert runs.find_run(runs_dir, second.id[-12:-2]) == second
    assert runs.find_run(runs_dir, str(second.path) + os.sep) == second
    with pytest.raises(RunError, match=first.id):
        runs.find_run(runs_dir, "x")
    with pytest.raises(RunError, match="More than one run begins"):
        runs.find_run(runs_dir, "2")


def test_only_a_run_at_rest_can_be_deleted(runs_dir):
    run = started_run(runs_dir, steps=1000)
    with pytest.raises(RunError, match="Stop it first"):
        job.delete_job(run)
    queue.send_command(run, "stop")
    wait_for_state(run, "stopped")
    job.delete_job(run)
    assert runs.list_runs(runs_dir) == []
    assert not run.path.exists()


def test_a_checkpoint_counts_when_it_has_its_manifest(runs_dir):
    run = new_run(runs_dir)
    assert runs.latest_checkpoint(run) is None
    for step in (900, 1000000, 2000000):
        leave_checkpoint(run, step)
    (run.checkpoints / "2000000" / "manifest.json").unlink()
    assert runs.latest_checkpoint(run) == run.checkpoints / "1000000"


# --- status


def test_a_reader_never_sees_half_a_status(runs_dir):
    run = new_run(runs_dir)
    writer = subprocess.Popen([*EXAMPLE_WORKER, str(run.path), "write-status"])
    steps = []
    while writer.poll() is None:
        steps.append(job.read_status(run).step)
    assert writer.returncode == 0
    assert steps == sorted(steps)
    assert len(set(steps)) > 20
    assert [path.name for path in run.path.glob(".status*")] == []


def test_a_status_of_a_reused_process_number_reads_as_interrupted(runs_dir):
    run = new_run(runs_dir)
    started = launcher.process_started(os.getpid())
    job.write_status(run, state="training", pid=os.getpid(), pid_started=started)
    assert run.status.state == "training"
    job.write_status(run, pid_started=started - 100)
    assert run.status.state == "interrupted"
    assert json.loads(run.status_file.read_text())["state"] == "training"


@pytest.mark.parametrize("content", ["", '{"state": "fin', '{"mood": "good"}'])
def test_a_broken_status_does_not_stand_in_the_way_of_other_runs(runs_dir, content):
    broken, run = new_run(runs_dir), new_run(runs_dir)
    broken.status_file.write_text(content)
    queue.enqueue(run)
    assert broken.status.state == "failed"
    assert "status.json is damaged" in broken.status.reason
    assert next_started(runs_dir) == run
    runs.resume(broken)
    wait_for_state(broken, "finished")


def test_a_dead_process_that_nobody_asked_after_is_dead():
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    wait_for(lambda: launcher.process_started(process.pid) is None)
    process.wait()


# --- a worker's life


def test_a_run_goes_from_draft_to_finished(runs_dir):
    run = new_run(runs_dir, steps=12)
    queue.enqueue(run)
    assert run.status.state == "queued"
    seen = [run.status.state]
    queue.start_next(runs_dir)
    while seen[-1] not in ("finished", "failed", "interrupted"):
        if (state := run.status.state) != seen[-1]:
            seen.append(state)
    order = ["queued", "loading", "encoding", "training", "finished"]
    assert seen == [state for state in order if state in seen]
    assert {"loading", "training", "finished"} <= set(seen)
    assert run.status.step == run.status.steps == 12
    assert steps_of(run) == list(range(1, 13))
    assert run.lora_file.read_bytes() == b"weights"
    assert not run.reserve_file.exists()
    with pytest.raises(RunError, match="finished already"):
        runs.resume(run)


def test_stop_leaves_a_checkpoint_and_resume_goes_on_from_it(runs_dir):
    run = started_run(runs_dir, steps=40)
    with pytest.raises(RunError, match="already"):
        runs.resume(run)
    wait_for_step(run, 3)
    queue.send_command(run, "stop")
    status = wait_for_state(run, "stopped")
    assert 3 <= status.step < 40
    assert runs.latest_checkpoint(run).name == f"{status.step:06d}"
    with pytest.raises(RunError, match="not at work: it is stopped"):
        queue.send_command(run, "stop")

    assert runs.resume(run) == runs.latest_checkpoint(run)
    queue.start_next(runs_dir)
    wait_for_state(run, "finished")
    assert steps_of(run) == list(range(1, 41))
    assert Resumed(status.step) in events_of(run)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals for a detached process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_worker_with_a_checkpoint(runs_dir, number):
    run = started_run(runs_dir, steps=1000)
    wait_for_step(run, 2)
    os.kill(run.status.pid, number)
    status = wait_for_state(run, "stopped")
    assert runs.latest_checkpoint(run).name == f"{status.step:06d}"


def test_commands_are_taken_once_and_unknown_ones_refused(runs_dir):
    run = new_run(runs_dir)
    started = launcher.process_started(os.getpid())
    job.write_status(run, state="training", pid=os.getpid(), pid_started=started)
    queue.send_command(run, "preview-now")
    queue.send_command(run, "save-now")
    assert job.take_commands(run) == {"preview-now", "save-now"}
    assert job.take_commands(run) == set()
    assert run.status.state == "training"
    queue.send_command(run, "stop")
    assert run.status.state == "stopping"  # at once, however long its step
    assert job.take_commands(run) == {"stop"}
    assert run.status.state == "stopping"
    with pytest.raises(ValueError, match="`command` must be one of stop"):
        queue.send_command(run, "explode")


def test_a_run_killed_at_any_moment_is_interrupted_and_goes_on(runs_dir):
    run = started_run(runs_dir, steps=100)
    for seed in range(3):
        time.sleep(random.Random(seed).uniform(0.2, 0.7))
        psutil.Process(run.status.pid).kill()
        assert wait_for_state(run, "interrupted").reason.startswith("Its process ended without saying why")
        checkpoint = runs.resume(run)
        assert run.status.state == "queued"
        assert checkpoint == runs.latest_checkpoint(run)
        assert next_started(runs_dir) == run
    wait_for_state(run, "finished")
    assert steps_of(run) == list(range(1, 101))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("fails-memory", "Out of memory. .*`rank` 16"),
        ("fails-sentence", "The model is gone. Fetch it again."),
        (
            "fails-x",
            "Unexpected error, ZeroDivisionError: division by zero. .*log.txt; the checkpoint of step 2",
        ),
        ("ends-silently", "Unexpected error, RuntimeError: The job ended without saying how"),
    ],
)
def test_an_exception_ends_the_run_with_a_sentence_and_a_trace(runs_dir, name, reason):
    run = started_run(runs_dir, name=name, steps=5, checkpoint_every=2)
    status = wait_for_state(run, "failed")
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(status.reason)
    assert events_of(run)[-1] == Failed(status.step, status.reason)
    assert "Traceback (most recent call last)" in run.log_file.read_text()


def test_a_worker_that_dies_at_its_import_ends_the_run_with_the_reason(runs_dir, monkeypatch):
    run = new_run(runs_dir)
    queue.enqueue(run)
    monkeypatch.setattr(launcher.launcher, "command", (sys.executable, "-c", "import not_there"))
    assert next_started(runs_dir) == run
    assert "No module named 'not_there'" in wait_for_state(run, "interrupted").reason
    assert queue.start_next(runs_dir) is None
    monkeypatch.setattr(launcher.launcher, "command", EXAMPLE_WORKER)
    runs.resume(run)
    queue.start_next(runs_dir)
    wait_for_state(run, "finished")


def test_a_worker_that_cannot_be_started_fails_the_run(runs_dir, monkeypatch, tmp_path):
    run = new_run(runs_dir)
    queue.enqueue(run)
    monkeypatch.setattr(launcher.launcher, "command", (str(tmp_path / "no-such-python"),))
    assert queue.start_next(runs_dir) is None
    assert run.status.state == "failed"
    assert "no-such-python" in run.status.reason


# --- the queue and the lock


def test_runs_are_done_one_after_the_other_in_the_order_of_the_queue(runs_dir):
    first, second, third = (new_run(runs_dir, name=name, steps=10) for name in "abc")
    order = [third, first, second]
    for run in order:
        queue.enqueue(run)
    assert [waiting.id for waiting in queue.waiting_jobs(runs_dir)] == [run.id for run in order]
    assert next_started(runs_dir) == third
    assert queue.start_next(runs_dir) is None
    for run in order:  # each worker that ends starts the next
        wait_for_state(run, "finished")
    spans = [span_of(run) for run in order]
    assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(spans))


def span_of(run):
    times = [json.loads(line)["time"] for line in run.events_file.read_text().splitlines()]
    return times[0], times[-1]


def test_stop_takes_a_waiting_run_out_of_the_queue(runs_dir):
    first = started_run(runs_dir, steps=30)
    second = new_run(runs_dir)
    queue.enqueue(second)
    with pytest.raises(RunError, match="queued already"):
        queue.enqueue(second)
    queue.send_command(second, "stop")
    assert second.status.state == "stopped"
    wait_for_state(first, "finished")
    assert queue.start_next(runs_dir) is None
    assert not second.events_file.exists()


def test_callers_at_the_same_moment_start_one_worker(runs_dir):
    waiting = [new_run(runs_dir, steps=30) for _ in range(3)]
    for run in waiting:
        queue.enqueue(run)
    callers = [
        subprocess.Popen([*EXAMPLE_WORKER, str(runs_dir), "start-next"], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    answers = [caller.communicate()[0].strip() for caller in callers]
    # A caller that was slow to come may have met the end of the first: then it started the next.
    started = sorted(answer for answer in answers if answer != "None")
    assert started == [run.id for run in waiting][: len(started)] and started
    for run in waiting:
        wait_for_state(run, "finished")
        assert run.log_file.read_text().count("begins") == 1
    spans = [span_of(run) for run in waiting]
    assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(spans))


def test_a_run_waits_while_another_job_has_the_gpu(runs_dir):
    run = new_run(runs_dir)
    queue.enqueue(run)
    with holding_the_card(runs_dir):
        assert queue.start_next(runs_dir) is None
        by_hand = subprocess.run([*EXAMPLE_WORKER, str(run.path)], capture_output=True, text=True)
        assert by_hand.returncode == worker.BUSY
        assert "Another job uses the GPU" in by_hand.stderr
        assert run.status.state == "queued"
    assert next_started(runs_dir) == run
    wait_for_state(run, "finished")


def test_a_worker_that_comes_too_late_for_the_gpu_goes_back_to_the_queue(runs_dir):
    run = new_run(runs_dir)
    queue.enqueue(run)
    with holding_the_card(runs_dir):
        with job.start_lock(runs_dir):  # as `start_next` does it, when somebody takes the lock just after
            process = subprocess.Popen([*EXAMPLE_WORKER, str(run.path)], stderr=subprocess.DEVNULL)
            started = launcher.process_started(process.pid)
            job.write_status(run, state="loading", pid=process.pid, pid_started=started)
        assert process.wait() == worker.BUSY
        assert run.status.state == "queued"
    assert next_started(runs_dir) == run
    wait_for_state(run, "finished")


def test_a_start_lock_that_is_held_for_long_is_told_in_words(runs_dir, monkeypatch):
    run = new_run(runs_dir)
    monkeypatch.setattr(job, "LOCK_SECONDS", 0.05)
    with FileLock(runs_dir / ".start.lock"), pytest.raises(RunError) as told:
        queue.enqueue(run)
    assert str(told.value).startswith(f"Another process of this program has held {runs_dir / '.start.lock'}")
    assert "Try again" in str(told.value)
    queue.enqueue(run)
    assert run.status.state == "queued"


def test_a_crash_frees_the_lock(runs_dir):
    first = started_run(runs_dir, steps=1000)
    second = new_run(runs_dir)
    queue.enqueue(second)
    wait_for_step(first, 1)
    psutil.Process(first.status.pid).kill()
    wait_for_state(first, "interrupted")
    assert next_started(runs_dir) == second
    wait_for_state(second, "finished")


def test_a_run_does_not_end_with_the_process_that_started_it(runs_dir):
    run = new_run(runs_dir, steps=40)
    queue.enqueue(run)
    starter = [*EXAMPLE_WORKER, str(runs_dir), "start-next"]
    subprocess.run(starter, check=True, stdout=subprocess.DEVNULL, start_new_session=True)
    wait_for_step(run, 1)
    if os.name != "nt":
        assert (
            os.getsid(run.status.pid) == run.status.pid
        )  # a session of its own: no terminal's signal comes there
    wait_for_state(run, "finished")


def test_a_second_worker_for_a_live_run_is_refused(runs_dir):
    run = started_run(runs_dir, steps=10_000)
    wait_for_step(run, 1)
    pid = run.status.pid
    second = subprocess.run([*EXAMPLE_WORKER, str(run.path)], capture_output=True, text=True)
    assert second.returncode == worker.BUSY
    assert "training already" in second.stderr
    assert (run.status.state, run.status.pid) == ("training", pid)


# --- failures told


def test_a_full_disk_fails_the_run_and_keeps_the_checkpoint(tmp_path):
    script = """
        import json, sys
        from pathlib import Path
        from dopsd_app.config import make_config
        from dopsd_app.data.pictures import Dataset
        from dopsd_app.jobs import runs, worker
        from dopsd_app.jobs.events import read_events
        from tests.support import example_worker

        config = make_config({"name": "fails-disk", "steps": 6, "checkpoint_every": 2})
        run = runs.create_run(Path(sys.argv[1]) / "runs", config, Dataset((), ()))
        code = worker.work(run, example_worker.count)
        status, log = run.status, run.log_file.read_text()
        checkpoint = runs.latest_checkpoint(run).name
        told = str(read_events(run.events_file)[-1])
        (run.path / "filler").unlink()
        runs.resume(run)
        again = worker.work(run, example_worker.count)
        print(json.dumps([code, status.state, status.reason, checkpoint, told, log, again, run.status.state]))
    """
    disk = tmp_path / "disk"
    disk.mkdir()
    command = [*on_a_small_disk(disk), sys.executable, "-c", textwrap.dedent(script)]
    result = subprocess.run([*command, str(disk)], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    code, state, reason, checkpoint, told, log, again, state_again = json.loads(result.stdout)
    assert (code, state, checkpoint) == (worker.FAILED, "failed", "000002")
    assert (
        reason == "The disk is full. Free some space, then resume the run: the checkpoint of step 2 is kept."
    )
    assert told == str(Failed(2, reason))
    assert "No space left on device" in log
    assert (again, state_again) == (0, "finished")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
    ],
)
def test_a_full_disk_is_known_in_the_words_of_each_library(runs_dir, error):
    try:
        raise RuntimeError("saving failed") from error
    except RuntimeError as outer:
        assert worker.explain(outer, new_run(runs_dir)).startswith("The disk is full.")


def test_a_known_failure_is_told_in_its_own_words(runs_dir):
    run = new_run(runs_dir)
    assert worker.explain(ConfigError("`steps` is wrong."), run) == "`steps` is wrong."
    assert worker.explain(MemoryError(), run).startswith("Out of memory.")
    allocator = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes.")
    assert worker.explain(allocator, run).startswith("Out of memory.")


@pytest.mark.parametrize(
    ("name", "kept"), [("some/model", "{folder}/some/model"), ("other/model", "other/model")]
)
def test_a_runs_base_model_is_found_from_the_workers_folder(new_run, tmp_path, monkeypatch, name, kept):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some" / "model").mkdir(parents=True)
    assert new_run(TrainConfig(base_model=name)).config.base_model == kept.format(folder=tmp_path)
