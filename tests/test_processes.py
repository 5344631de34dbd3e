"""Several processes that train one LoRA together, as a launcher starts them: real ones, on the processor."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest
import torch
from filelock import FileLock

from dopsd_app.jobs import card
from dopsd_app.jobs.events import CheckpointSaved, StepDone, read_events
from dopsd_app.jobs.job import place_command
from dopsd_app.method.encode import EncodedExample
from dopsd_app.method.processes import Processes
from dopsd_app.method.step import micro_batches
from dopsd_app.train import train
from tests.support import forks, nvml
from tests.support.waiting import wait_for

pytestmark = pytest.mark.process


@contextmanager
def together(run, tmp_path, count=2, **environment):
    """The processes of a run, by rank; they end with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    log = (tmp_path / "launched.txt").open("ab")
    processes = []
    for rank in map(str, range(count)):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(count)}
        ranks |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, "-m", "dopsd_app.train", str(run.path)]
        # What is imported first, as the imitation of the driver is, needs a new process.
        start = forks.Forked if forks.can_fork() and not environment else subprocess.Popen
        processes.append(
            start(
                command,
                cwd=forks.ROOT,
                env=os.environ | environment | ranks,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        )
    try:
        yield processes
    finally:
        log.close()
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def steps_of(run):
    return [event for event in read_events(run.events_file) if isinstance(event, StepDone)]


def trained_weights(run, step):
    """All of student and teacher, and of them the B alone, which begin as zero: what was learned."""
    adapters = torch.load(run.checkpoints / f"{step:06d}" / "resume.pt", weights_only=True)["adapters"]
    named = [item for weights in adapters.values() for item in weights.items()]
    everything = torch.cat([weight.flatten() for _, weight in named])
    learned = torch.cat([weight.flatten() for name, weight in named if ".lora_B." in name])
    return everything, learned


def test_a_batch_is_dealt_out_whole(tiny_config):
    tall, wide = (EncodedExample((), (), height, width) for height, width in ((64, 32), (32, 64)))
    config = replace(tiny_config, batch_size=5)
    whole = {}
    for passes in micro_batches(config, (tall, wide, tall), 3):
        whole |= passes
    shares = [micro_batches(config, (tall, wide, tall), 3, Processes(rank, 2)) for rank in range(2)]
    dealt = [sorted(position for passes in share for position in passes) for share in shares]
    assert dealt == [[0, 2, 4], [1, 3]]
    assert all(passes[position] == whole[position] for s in shares for passes in s for position in passes)


@pytest.mark.parametrize("batch_size", [4, 3])
def test_two_processes_train_what_one_trains(new_run, tiny_config, tmp_path, batch_size):
    config = replace(tiny_config, batch_size=batch_size, preview_every=4, steps=4)
    alone, shared = new_run(config), new_run(config)
    losses = [event.loss for event in train(alone) if isinstance(event, StepDone)]
    with together(shared, tmp_path) as processes:
        assert [process.wait(120) for process in processes] == [0, 0], (tmp_path / "launched.txt").read_text()
    assert shared.status.state == "finished"
    assert [event.step for event in steps_of(shared)] == [1, 2, 3, 4]
    assert [event.loss for event in steps_of(shared)] == pytest.approx(losses, rel=1e-6)
    (everything, learned), (shared_everything, shared_learned) = (
        trained_weights(run, 4) for run in (alone, shared)
    )
    assert learned.any()
    assert (everything - shared_everything).norm() <= 1e-6 * everything.norm()
    # Where examples' gradients cancel each other, Adam makes much of how their sum was rounded.
    assert (learned - shared_learned).norm() <= 1e-5 * learned.norm()
    made = {path.relative_to(alone.path).as_posix() for path in alone.path.rglob("*") if path.is_file()}
    there = {path.relative_to(shared.path).as_posix() for path in shared.path.rglob("*") if path.is_file()}
    assert there - made == {"events.jsonl", "log.txt"}  # those of a worker; and each once


def test_a_stop_ends_all_with_a_checkpoint(new_run, tiny_config, tmp_path):
    run = new_run(replace(tiny_config, steps=100_000, checkpoint_every=100_000))
    with together(run, tmp_path) as processes:
        wait_for(lambda: steps_of(run))
        processes[1].send_signal(signal.SIGTERM)  # a launcher that is stopped signals all: the first one acts
        place_command(run, "save-now")
        wait_for(lambda: any(isinstance(event, CheckpointSaved) for event in read_events(run.events_file)))
        place_command(run, "stop")
        assert [process.wait(120) for process in processes] == [0, 0]
    assert run.status.state == "stopped"
    assert (run.checkpoints / f"{run.status.step:06d}").is_dir()


def test_the_run_says_why_it_failed_when_another_process_is_lost(new_run, tiny_config, tmp_path):
    run = new_run(replace(tiny_config, steps=100_000))
    with together(run, tmp_path) as processes:
        wait_for(lambda: steps_of(run))
        processes[1].kill()
        assert processes[0].wait(120) == 1
    assert run.status.state == "failed"
    assert run.status.reason.startswith("Another process of this training ended without saying why")


def test_more_processes_than_pictures_of_a_step_are_refused(new_run, tiny_config, tmp_path):
    run = new_run(replace(tiny_config, batch_size=1))
    with together(run, tmp_path) as processes:
        assert [process.wait(120) for process in processes] == [1, 0]
    assert run.status.reason == (
        "2 processes cannot share the 1 pictures of a step: start as many as `batch_size` at the most."
    )


@pytest.mark.parametrize("taken", [False, True])
def test_each_process_holds_a_card_of_its_own(new_run, tiny_config, tmp_path, taken):
    """Of cards that this torch cannot compute on, so that the processor does."""
    cards = [nvml.card("A100", 40960, uuid=f"GPU-{name}", capability=(8, 0)) for name in "AB"]
    run = new_run(replace(tiny_config, steps=100_000, checkpoint_every=100_000))
    with ExitStack() as stack:
        if taken:
            stack.enter_context(FileLock(card._file("lock", "GPU-B")))
        processes = stack.enter_context(together(run, tmp_path, **nvml.environment(*cards)))
        if taken:
            assert [process.wait(120) for process in processes] == [1, 0]
            assert run.status.reason.startswith("In process 1: Another job uses its card.")
            return
        wait_for(lambda: steps_of(run))
        assert not card.is_card_free("GPU-A") and not card.is_card_free("GPU-B")
        place_command(run, "stop")
        assert [process.wait(120) for process in processes] == [0, 0]
    assert card.is_card_free("GPU-A") and card.is_card_free("GPU-B")
