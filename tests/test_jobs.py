"""Jobs of every kind, by a toy kind that one file adds: queue, card, commands, result, and damage on disk."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from filelock import FileLock

from dopsd_app import __version__, gpus
from dopsd_app.config import TrainConfig, make_config
from dopsd_app.data.pictures import Dataset
from dopsd_app.hub.card_pictures import card_pictures
from dopsd_app.jobs import card, job, launcher, queue, runs
from dopsd_app.jobs.awake import awake
from dopsd_app.jobs.beside import Wanted, check_room
from dopsd_app.jobs.drawing import unfinished_drawings
from dopsd_app.jobs.events import StepDone, append_event, read_events
from dopsd_app.jobs.job import RunError
from dopsd_app.jobs.kinds import CHECK_BASE, DRAW, KINDS
from dopsd_app.jobs.launcher import LOG, LocalProcess
from dopsd_app.jobs.watch import RunWatcher
from dopsd_app.progress import PhaseProgress
from tests.support import nvml
from tests.support.waiting import ended, wait_for

pytestmark = pytest.mark.process

TOY = Path(__file__).parent / "support/toy_kind.py"


@pytest.fixture
def toy(monkeypatch):
    """The toy kinds, known to this process and to the workers that it starts."""
    command = launcher.launcher.command
    from tests.support import toy_kind

    monkeypatch.setattr(launcher.launcher, "command", (sys.executable, str(TOY)))
    for kind in (toy_kind.ADD, toy_kind.ASIDE, toy_kind.KEEP):
        monkeypatch.setitem(KINDS, kind.name, kind)
    yield toy_kind
    launcher.launcher.command = command


@pytest.fixture
def runs_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "runs"
    yield folder
    for one, status in queue.statuses(folder):
        if status.live and status.pid != os.getpid():
            psutil.Process(one.status.pid).kill()


def ask(runs_dir, kind, *numbers, seconds=0.0):
    asked = job.create_job(runs_dir, kind, {"numbers": numbers, "seconds": seconds})
    queue.enqueue(asked)
    queue.start_next(runs_dir)
    return asked


# --- a kind in one file


def read_first_line(file):
    return file.read_text().splitlines()[0]


def test_a_toy_kind_has_queue_events_result_and_failures(toy, runs_dir):
    first, second = ask(runs_dir, toy.ADD, 1, 2, 3, seconds=0.2), ask(runs_dir, toy.ADD, 4, "five")
    assert second.status.state == "queued"
    assert (ended(first).state, first.result) == ("finished", {"sum": 6})
    events = [event for event in read_events(first.events_file) if isinstance(event, PhaseProgress)]
    assert events == [PhaseProgress("adding", done, 3) for done in range(3)]
    # The worker that ended has started the next one.
    assert ended(second).state == "failed"
    assert second.status.reason.startswith("Unexpected error, TypeError")
    assert "Traceback" in second.log_file.read_text()
    assert f"version {__version__}, process {first.status.pid} begins" in read_first_line(first.log_file)
    assert second.result == {}


def test_a_job_is_stopped_while_it_waits_and_while_it_works(toy, runs_dir):
    working, waiting = (ask(runs_dir, toy.ADD, *range(1000), seconds=0.02) for _ in range(2))
    queue.send_command(waiting, "stop")
    assert waiting.status.state == "stopped"
    wait_for(lambda: working.status.state == "adding")
    with pytest.raises(RunError, match="is at work"):
        job.delete_job(working)
    queue.send_command(working, "stop")
    assert ended(working).state == "stopped"
    job.delete_job(working)
    assert job.list_jobs(runs_dir) == [waiting]


def test_a_job_that_does_not_compute_waits_for_nobody_and_is_stopped_at_once(toy, runs_dir):
    asked = job.create_job(runs_dir, toy.ASIDE, {"numbers": [1, 2]})
    runs_dir.mkdir(exist_ok=True)
    lock = card.CardLock()
    assert lock.take(runs_dir, "Another job")
    with job.start_lock(runs_dir):
        assert queue.start(asked)
    assert (ended(asked).state, asked.result) == ("finished", {"sum": 3})
    slow = job.create_job(runs_dir, toy.ASIDE, {"numbers": [1], "seconds": 600})
    with job.start_lock(runs_dir):
        queue.start(slow)
    wait_for(lambda: slow.status.state == "adding")
    process = psutil.Process(slow.status.pid)
    begun = time.monotonic()
    queue.send_command(slow, "stop")
    assert slow.status.state == "stopped" and time.monotonic() - begun < 5
    assert launcher.process_started(process.pid) is None
    lock.give_back()


def test_a_workers_environment_holds_no_token(toy, runs_dir, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_marked8812")
    asked = ask(runs_dir, toy.ADD, *range(1000), seconds=0.02)
    wait_for(lambda: asked.status.state == "adding")
    process = psutil.Process(asked.status.pid)
    assert "hf_marked8812" not in " ".join([*process.environ().values(), *process.cmdline()])
    queue.send_command(asked, "stop")
    assert ended(asked).state == "stopped"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals for a detached process")
def test_a_signal_before_anything_is_imported_is_a_stop(toy, runs_dir):
    asked = ask(runs_dir, toy.ADD, *range(1000), seconds=0.02)
    psutil.Process(asked.status.pid).terminate()  # it has hardly begun
    assert ended(asked).state == "stopped"


def test_two_folders_of_runs_share_the_card(toy, runs_dir, tmp_path):
    here = ask(runs_dir, toy.ADD, *range(1000), seconds=0.02)
    wait_for(lambda: here.status.state == "adding")
    there = ask(tmp_path / "others", toy.ADD, 1)
    assert there.status.state == "queued"
    assert card.read_holder().runs_dir == str(runs_dir)
    queue.send_command(here, "stop")
    ended(here)
    assert ended(there).state == "finished"


@pytest.fixture
def cards(monkeypatch):
    """Two cards alike and a smaller one, for this process and for the workers that it starts."""
    both = [nvml.card("A100", 40960, uuid=f"GPU-{name}", capability=(8, 0)) for name in "AB"]
    small = nvml.card("RTX 3060", 12288, uuid="GPU-small", capability=(8, 6))
    for name, value in nvml.environment(small, *both).items():
        monkeypatch.setenv(name, value)
    nvml.install(monkeypatch.setattr, [small, *both])
    monkeypatch.setattr(card, "_known_card", "")
    monkeypatch.setattr(card, "_known_cards", ())
    for name in ("CUDA_VISIBLE_DEVICES", gpus.CARDS):
        monkeypatch.delenv(name, raising=False)
    gpus._cards.cache_clear()
    yield
    gpus._cards.cache_clear()


def test_of_two_cards_each_does_a_job_and_a_third_job_waits(toy, runs_dir, cards):
    first, second, third = (ask(runs_dir, toy.ADD, *range(1000), seconds=0.02) for _ in range(3))
    wait_for(lambda: first.status.state == second.status.state == "adding")
    assert third.status.state == "queued"  # the smaller card may not do what was planned for these
    on = [psutil.Process(one.status.pid).environ()["CUDA_VISIBLE_DEVICES"] for one in (first, second)]
    assert on == [one.status.card for one in (first, second)] == ["GPU-A", "GPU-B"]
    assert card.read_holder("GPU-A").pid == first.status.pid
    assert card.read_holder("GPU-B").pid == second.status.pid
    queue.send_command(second, "stop")
    wait_for(lambda: third.status.state == "adding")
    assert (third.status.card, first.status.state) == ("GPU-B", "adding")
    for one in (first, third):
        queue.send_command(one, "stop")
        assert ended(one).state == "stopped"


def test_a_training_waits_for_the_card_that_it_was_given(toy, runs_dir, cards):
    working = ask(runs_dir, toy.ADD, *range(1000), seconds=0.02)
    wait_for(lambda: working.status.state == "adding")
    for chosen, expected in (("GPU-A", ""), ("GPU-B", "GPU-B"), ("GPU-small", "GPU-small"), ("", "GPU-B")):
        run = runs.create_run(runs_dir, TrainConfig(card=chosen), Dataset((), ()))
        assert queue._find_card(run, queue._taken_cards(runs_dir)) == expected
    queue.send_command(working, "stop")
    ended(working)


def test_a_drawing_needs_a_trainings_process_only_where_no_card_is_free(toy, runs_dir, cards, monkeypatch):
    run = runs.create_run(runs_dir, TrainConfig(), Dataset((), ()))
    ours = {"pid": os.getpid(), "pid_started": launcher.process_started(os.getpid())}
    job.write_status(run, state="training", card="GPU-A", **ours)
    check_room(runs_dir, Wanted(TrainConfig()))
    with FileLock(card._file("lock", "GPU-B")), pytest.raises(RunError, match="is being trained"):
        check_room(runs_dir, Wanted(TrainConfig()))
    monkeypatch.setattr(card, "card_name", lambda: "GPU-B")
    warm = card.CardLock()
    for folder, here in ((runs_dir, True), (runs_dir.parent, False)):
        assert warm.take(folder, "A drawing", warm=True)  # a worker that keeps its model
        with nullcontext() if here else pytest.raises(RunError, match="is being trained"):
            check_room(runs_dir, Wanted(TrainConfig()))
        warm.give_back()


def test_a_card_is_told_by_its_own_number():
    code = "from dopsd_app.jobs.card import card_name; print(card_name())"
    cards = [nvml.card(name, 10, uuid=f"GPU-{name}", capability=(8, 9)) for name in "AB"]
    for environment, name in ((nvml.environment(*cards), "GPU-B"), (nvml.environment(), "cpu")):
        ours = os.environ | environment | {"CUDA_VISIBLE_DEVICES": "1"}
        told = subprocess.run(
            [sys.executable, "-c", code], env=ours, cwd=TOY.parents[2], capture_output=True, text=True
        )
        assert told.stdout.strip() == name, told.stderr


def test_the_threads_of_a_worker_keep_a_core_busy_for_a_short_time_only(tmp_path, monkeypatch):
    """On two cores with twenty other threads that made a step thirty times as fast; what is set stays."""
    process = LocalProcess()
    process.command = (sys.executable, "-c", "import os; print(os.environ.get('GOMP_SPINCOUNT'))")
    for name, given, expected in (
        ("", "", "3000"),
        ("GOMP_SPINCOUNT", "7", "7"),
        ("OMP_WAIT_POLICY", "ACTIVE", "None"),
    ):
        monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
        if name:
            monkeypatch.setenv(name, given)
        (folder := tmp_path / expected).mkdir()
        process.start(folder)
        wait_for(lambda folder=folder: (folder / LOG).read_text().endswith("\n"))
        assert (folder / LOG).read_text().strip() == expected


# --- damage


def damaged_ways(content: bytes) -> dict[str, bytes | None]:
    """What may stand in a file's place; None: a folder."""
    return {
        "empty": b"",
        "half": content[: len(content) // 2],
        "number": b"12",
        "null": b"null",
        "object": b"{}",
        "text in numbers": content.replace(b": 1", b': "one"'),
        "random": bytes(range(256)),
        "folder": None,
    }


FILES = (
    "status.json",
    "config.json",
    "events.jsonl",
    "job.json",
    "log.txt",
    "lora_check.json",
    "card/01.json",
)
WAYS = ("missing", *damaged_ways(b""))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_hurts_its_own_run_alone(runs_dir, name, way):
    config = make_config({"steps": 2})
    bad, good = (runs.create_run(runs_dir, config, Dataset((), ())) for _ in range(2))
    append_event(bad.events_file, StepDone(1, 1.0, 1.0, 1.0, 1))
    bad.log_file.write_text("begins\n")
    bad.check_file.write_text("{}")
    (bad.path / "card").mkdir()
    (bad.path / "card" / "01.png").write_bytes(b"")
    (bad.path / "card" / "01.json").write_text('{"prompt": "a dog"}')
    job.write_status(bad, state="stopped", pid=1, pid_started=1.0, step=1)
    damage(bad.path / name, way)

    assert set(runs.list_runs(runs_dir)) == {good, bad}
    queue.enqueue(good)
    assert [one.id for one in queue.waiting_jobs(runs_dir)] == [good.id]
    assert unfinished_drawings(runs_dir) == []
    status = bad.status
    assert status.state == "stopped" or (status.state == "failed" and "status.json" in status.reason)
    RunWatcher().read(bad)
    card_pictures(bad)
    if name == "config.json" and way != "text in numbers":
        with pytest.raises(ValueError, match=r"config\.json is damaged"):
            _ = bad.config
    if name == "status.json":
        runs.resume(bad)  # writes it anew, as it is said
        assert bad.status.state == "queued"
        queue.send_command(bad, "stop")
    assert runs.known_run(runs_dir, bad.id) == bad
    job.delete_job(bad)
    assert runs.list_runs(runs_dir) == [good]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ("status.json", "job.json", "result.json", "events.jsonl"))
def test_a_damaged_file_hurts_its_own_job_alone(runs_dir, name, way):
    bad, good = (job.create_job(runs_dir, DRAW, {"run_id": "x", "prompt": "y", "seed": 1}) for _ in range(2))
    bad.result_file.write_text('{"base": "base.png"}')
    append_event(bad.events_file, PhaseProgress("drawing", 1, 1))
    job.write_status(bad, state="queued", queue_number=1)
    damage(bad.path / name, way)
    queue.enqueue(good)
    assert good.id in [one.id for one in queue.waiting_jobs(runs_dir)]
    queue.statuses(runs_dir)
    unfinished_drawings(runs_dir)
    assert isinstance(bad.result, dict)
    job.delete_job(bad)
    assert job.list_jobs(runs_dir) == [good]


def damage(file: Path, way: str) -> None:
    content = file.read_bytes()
    file.unlink()
    if way == "folder":
        file.mkdir()
    elif way != "missing":
        file.write_bytes(damaged_ways(content)[way])


@pytest.mark.parametrize(
    "status",
    [
        {"state": "stopped", "pid": "x"},
        {"state": "queued", "queue_number": "first"},
        {"state": "dancing", "pid": None},
        {"state": "training", "pid": -1, "pid_started": 1.0},
    ],
)
def test_a_status_that_means_nothing_does_not_stop_the_queue(toy, runs_dir, status):
    bad = job.create_job(runs_dir, toy.ADD, {"numbers": [1]})
    bad.status_file.write_text(json.dumps(status))
    assert ended(ask(runs_dir, toy.ADD, 1)).state == "finished"
    assert bad.status.state in ("failed", "interrupted")


def test_lines_that_are_no_events_are_left_out(runs_dir):
    run = runs.create_run(runs_dir, TrainConfig(), Dataset((), ()))
    done = StepDone(1, 0.5, 1.0, 1.0, 0)
    append_event(run.events_file, done)
    odd = {"event": "StepDone", "time": 1.0, **asdict(done), "loss": "low"}
    with run.events_file.open("a") as file:
        for line in ("12", "null", "{}", "[]", '"x"', '{"event": []}', json.dumps(odd)):
            file.write(f"{line}\n")
    append_event(run.events_file, StepDone(2, 0.5, 1.0, 1.0, 0))
    assert [event.step for event in read_events(run.events_file)] == [1, 2]


# --- several folders of runs


def test_what_waits_in_another_folder_is_started_by_whoever_gives_the_card_back(toy, runs_dir, tmp_path):
    here = ask(runs_dir, toy.ADD, *range(1000), seconds=0.02)
    wait_for(lambda: here.status.state == "adding")
    there = ask(tmp_path / "others", toy.ADD, 1)  # as `--detach`: nobody looks at it again
    assert there.status.state == "queued"
    queue.send_command(here, "stop")
    assert ended(there).state == "finished"


def test_a_warm_worker_gives_way_to_another_folder_and_tells_its_own_drawings(toy, runs_dir, tmp_path):
    warm = [ask(runs_dir, toy.KEEP, *range(1000), seconds=0.02) for _ in range(2)]
    wait_for(lambda: warm[0].status.state == "adding")
    assert card.read_holder().warm
    there = ask(tmp_path / "others", toy.ADD, 1)
    assert [ended(one).reason for one in warm] == [queue.ASKED_TO_LEAVE] * 2
    assert ended(there).state == "finished"


def test_a_job_keeps_the_computer_awake_and_goes_on_where_nothing_can(toy, runs_dir, monkeypatch):
    monkeypatch.setenv("WAKEPY_FAKE_SUCCESS", "yes")
    kept = ask(runs_dir, toy.ADD, 1)
    assert ended(kept).state == "finished"
    assert "the computer is kept awake (WakepyFakeSuccess)" in kept.log_file.read_text()
    monkeypatch.delenv("WAKEPY_FAKE_SUCCESS")
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nowhere")
    not_kept = ask(runs_dir, toy.ADD, 1)
    assert ended(not_kept).state == "finished"
    assert "nothing keeps this computer awake" in not_kept.log_file.read_text()


def test_who_can_not_let_the_computer_sleep_again_ends_no_job(monkeypatch):
    """As after a logout, which takes the session's bus away."""

    @contextmanager
    def running(**_):
        yield SimpleNamespace(active=True, method=SimpleNamespace(name="a bus"))
        raise RuntimeError("The exit_mode was unsuccessful!")

    monkeypatch.setattr("wakepy.keep.running", running)
    with awake() as kept:
        assert kept == "the computer is kept awake (a bus)"


def test_the_check_of_a_base_is_named_as_one(toy, runs_dir):
    config = asdict(TrainConfig())
    check = job.create_job(runs_dir, CHECK_BASE, {"config": config})
    assert queue.describe(check) == "The check of a base model"
    queue.put_in_queue(check)
    assert queue.reason_to_leave(runs_dir) == queue.ASKED_TO_LEAVE


def test_a_training_that_comes_while_a_warm_worker_looks_is_named_as_one(toy, runs_dir, monkeypatch):
    def asked_for():  # the training gets into the queue and asks for the card, between two readings
        queue.put_in_queue(runs.create_run(runs_dir, TrainConfig(), Dataset((), ())))
        return True

    monkeypatch.setattr(queue, "is_card_wanted", asked_for)
    assert queue.reason_to_leave(runs_dir) == queue.CUT_OFF


def test_what_computes_is_told_and_not_the_moment_in_which_a_card_changes_hands():
    assert card.what_computes() == ""
    lock = card.CardLock()
    assert lock.take(Path("somewhere"), "The training of zorp")
    assert card.what_computes(seconds=0) == "The training of zorp"
    holder = card._file("json")
    holder.unlink()
    assert card.what_computes(seconds=0) == "Another job"
    with ThreadPoolExecutor() as elsewhere:
        told = elsewhere.submit(card.what_computes, seconds=60)
        time.sleep(0.1)
        assert not told.done()
        lock.give_back()
        assert told.result() == ""
    assert lock.take(Path("somewhere"), "A warm worker", warm=True)
    assert card.what_computes(seconds=0) == ""
    lock.give_back()


def test_a_worker_without_the_card_leaves_the_holder_alone(toy, runs_dir):
    runs_dir.mkdir()
    lock = card.CardLock()
    assert lock.take(runs_dir, "Another job", warm=True)
    asked = job.create_job(runs_dir, toy.ADD, {"numbers": [1]})
    done = subprocess.run([*launcher.launcher.command, str(asked.path)], capture_output=True, text=True)
    assert (done.returncode, asked.status.state) == (75, "draft"), done.stderr
    assert card.read_holder().pid == os.getpid()
    lock.give_back()
    assert card.read_holder() is None


def test_a_job_that_was_told_to_stop_does_not_go_back_to_the_queue(toy, runs_dir):
    asked = job.create_job(runs_dir, toy.ADD, {"numbers": [1]})
    lock = card.CardLock()
    assert lock.take(runs_dir, "Another job")
    with job.start_lock(runs_dir):  # as `start_next` does it, when somebody takes the card just after
        assert queue.start(asked)
        job.place_command(asked, "stop")
    assert ended(asked).state == "stopped"
    lock.give_back()
