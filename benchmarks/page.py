"""How soon the page can be used, against an empty Gradio app, and what one update for a long run costs.

python -m benchmarks.page
"""

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import gradio as gr
from PIL import Image
from playwright.sync_api import sync_playwright

from benchmarks.record import save_result
from dopsd_app.config import load_preset, make_config
from dopsd_app.data.pictures import read_examples
from dopsd_app.jobs.events import PreviewSaved, Resumed, StepDone, append_event
from dopsd_app.jobs.job import write_status
from dopsd_app.jobs.runs import Run, create_run
from dopsd_app.jobs.watch import RunWatcher
from dopsd_app.ui.train import train_step

ROOT = Path(__file__).parent.parent
EMPTY = (
    "import gradio as gr\nwith gr.Blocks() as app:\n    gr.Button('Hello', elem_id='ready')\napp.launch()\n"
)
STARTS, UPDATES = 15, 100
STEPS, PREVIEWS, OTHER_RUNS = 10_000, 24, 20
PROMPTS = ("a zorp on a hill", "a zorp at sea")


def main() -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        result = {"start": measure_starts(Path(folder)), "look": measure_updates(Path(folder))}
    print(f"Saved {save_result('page', result).name}: {result}")


def measure_starts(folder: Path) -> dict:
    """Seconds from the command until a button of the page can be pressed in a browser, in turns."""
    empty = folder / "empty.py"
    empty.write_text(EMPTY)
    seconds: dict[str, list[float]] = {"page": [], "empty": []}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for _ in range(STARTS):
            seconds["page"].append(_start(browser, ROOT / "app.py", "#example-zorp", folder))
            seconds["empty"].append(_start(browser, empty, "#ready", folder))
        browser.close()
    medians = {name: round(statistics.median(values), 2) for name, values in seconds.items()}
    return {
        "usable_means": "the first button can be pressed in headless Chromium",
        "median_seconds": medians,
        "more_than_empty": round(medians["page"] - medians["empty"], 2),
        "seconds": {name: [round(value, 2) for value in values] for name, values in seconds.items()},
    }


def _start(browser, program: Path, button: str, folder: Path) -> float:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "DOPSD_RUNS": str(folder / "no-runs"),
        "DOPSD_DRAFTS": str(folder / "drafts"),
    }
    started = time.perf_counter()
    server = subprocess.Popen([sys.executable, str(program)], env=environment, stdout=subprocess.DEVNULL)
    try:
        wait_for(f"http://127.0.0.1:{port}/")
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}/")
        page.click(button, trial=True)  # waits until it could be pressed
        seconds = time.perf_counter() - started
        page.close()
        return seconds
    finally:
        server.terminate()
        server.wait()


def wait_for(address: str) -> None:
    for _ in range(6000):
        try:
            urllib.request.urlopen(address).close()
            return
        except OSError:
            time.sleep(0.01)
    raise RuntimeError(f"{address} does not answer.")


def measure_updates(folder: Path) -> dict:
    """Milliseconds of one update for a run of STEPS steps that goes on, beside OTHER_RUNS others."""
    run = _long_run(folder / "runs")
    with _runs_in(run.runs_dir), gr.Blocks():
        train = train_step(gr.Button())

        def show(sent: object) -> dict:
            return train.show_new({train.run_id: run.id, train.digests: sent})

        first = _milliseconds(lambda: show(None))
        sent = show(None)[train.digests]
        times = []
        for step in range(STEPS + 1, STEPS + 1 + UPDATES):
            append_event(run.events_file, StepDone(step, 1 / step, 0.1, 1.0, 0))
            write_status(run, step=step)
            times.append(_milliseconds(lambda sent=sent: show(sent)))
            sent = show(sent)[train.digests]
        watcher = RunWatcher()
        return {
            "steps": STEPS,
            "previews": PREVIEWS,
            "other_runs": OTHER_RUNS,
            "median_ms_with_a_new_step": round(statistics.median(times), 1),
            "worst_ms_with_a_new_step": round(max(times), 1),
            "median_ms_with_nothing_new": round(
                statistics.median(_milliseconds(lambda: show(sent)) for _ in range(UPDATES)), 1
            ),
            "first_ms_with_all_previews": round(first, 1),
            "first_ms_of_reading_events": round(_milliseconds(lambda: watcher.read(run)), 1),
        }


@contextmanager
def _runs_in(folder: Path):
    before = os.environ.get("DOPSD_RUNS")
    os.environ["DOPSD_RUNS"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("DOPSD_RUNS")
        if before is not None:
            os.environ["DOPSD_RUNS"] = before


def _milliseconds(action) -> float:
    started = time.perf_counter()
    action()
    return 1000 * (time.perf_counter() - started)


def _long_run(runs_dir: Path) -> Run:
    config = replace(make_config(load_preset("pocket").settings), steps=2 * STEPS)
    dataset = read_examples(ROOT / "assets" / "examples" / "zorp", minimum_side=64)
    others = [create_run(runs_dir, replace(config, name=f"run {n}"), dataset) for n in range(OTHER_RUNS)]
    for other in others:
        write_status(other, state="stopped", step=50)
    run = create_run(runs_dir, config, dataset)
    append_event(run.events_file, Resumed(0))
    for step in range(1, STEPS + 1):
        append_event(run.events_file, StepDone(step, 1 / step, 0.1, 1.0, 0))
        if step % (STEPS // PREVIEWS) == 0:
            samples = [f"previews/{step:06d}_sample_{number}.webp" for number in range(len(PROMPTS))]
            states = [
                f"previews/{step:06d}_{who}_{n}.webp" for who in ("student", "teacher") for n in range(4)
            ]
            for names, side in (samples, 1024), (states, 512):
                for name in names:
                    Image.effect_noise((side, side), 40).convert("RGB").save(run.path / name)
            append_event(run.events_file, PreviewSaved(step, "rollout", tuple(states)))
            append_event(run.events_file, PreviewSaved(step, "samples", tuple(samples), PROMPTS))
    write_status(run, state="stopped", step=STEPS)
    return run


if __name__ == "__main__":
    main()
