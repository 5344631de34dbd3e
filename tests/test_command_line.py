"""The command line, mostly as its own process; `example_worker.py` counts where the real worker trains."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from PIL import Image

from dopsd_app import __version__
from dopsd_app.cli import _read_settings, main
from dopsd_app.config import list_settings
from dopsd_app.jobs import runs

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[1]
# Importing the example worker makes it the one that runs are started with. Tests that themselves run in the
# background were started with Ctrl-C ignored, and so would this be.
COMMAND_LINE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, sys.argv.pop(1))
from tests.support import example_worker
from dopsd_app.cli import main
code = main(sys.argv[1:])
assert not {"torch", "gradio", "transformers", "diffusers"} & sys.modules.keys()
sys.exit(code)
"""


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number, colour in enumerate(("red", "green", "blue", "white")):
        Image.new("RGB", (64, 64), colour).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"tok in {colour}\n")
    return folder


@pytest.fixture
def large_images(images):
    """The same, large enough for a real base model."""
    for path in images.glob("*.png"):
        with Image.open(path) as picture:
            picture.resize((256, 256)).save(path)
    return images


@pytest.fixture
def runs_dir(tmp_path):
    """An empty folder of runs; no worker outlives the test."""
    folder = tmp_path / "runs"
    yield folder
    for run in runs.list_runs(folder):
        if run.status.live:
            psutil.Process(run.status.pid).kill()


@pytest.fixture
def train_arguments(images, runs_dir, z_image_folder):
    settings = ["steps=10", "checkpoint_every=5", "resolution=64", f"base_model={z_image_folder}"]
    return ["train", "--images", str(images), "--runs", str(runs_dir), "--set", *settings]


def started(arguments):
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND_LINE, str(ROOT), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def done(arguments):
    process = started(arguments)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def the_run(runs_dir):
    deadline = time.monotonic() + 20
    while not (found := runs.list_runs(runs_dir)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found[0]


def wait_for_step(run, step):
    deadline = time.monotonic() + 20
    while run.status.step < step:
        assert time.monotonic() < deadline, run.status
        time.sleep(0.02)


def test_train_follows_a_run_to_its_lora(train_arguments, images, runs_dir):
    (images / "prompts.txt").write_text("[trigger] on a sofa\n\n  tok at night \n", encoding="utf-8-sig")
    code, out, err = done([*train_arguments, "name=first", "trigger_word=tok"])
    assert (code, err) == (0, "")
    run = the_run(runs_dir)
    assert run.config.preview_prompts == ("tok on a sofa", "tok at night")
    assert (run.config.name, run.config.trigger_word) == ("first", "tok")
    assert (
        run.config.rank == 64
    )  # a base model of one's own gets the defaults, not the built-in base's preset
    assert "Step 5, checkpoint saved" in out
    assert f"preview (rollout): {run.previews / 'student.webp'} and 1 more" in out
    assert f"The LoRA: {run.lora_file}" in out
    assert f'generate {run.id} --runs "{runs_dir}" --prompt "tok on a sofa"' in out


def test_train_without_waiting_leaves_the_run_at_work(train_arguments, runs_dir):
    code, out, _ = done([*train_arguments, "--detach", "--name", "mine", "--trigger-word", "tok"])
    run = the_run(runs_dir)
    assert code == 0
    assert run.id in out
    assert "It is at work." in out
    assert (run.config.name, run.config.trigger_word) == ("mine", "tok")
    wait_for_step(run, 10)


def test_all_that_is_wrong_is_told_at_once_and_nothing_is_made(images, runs_dir, capsys):
    (images / "0.txt").unlink()
    (images / "1.txt").write_text("")
    wrong = ["--set", "steps=0", "rank=many", "stepz=3", "--preset", "pocket"]
    assert main(["train", "--images", str(images), "--runs", str(runs_dir), *wrong]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert all(word in err for word in ("`steps`", "`rank`", "`stepz`", "0.png", "1.png"))
    assert "Traceback" not in err
    assert not runs_dir.exists()


def test_a_base_model_and_a_preset_that_are_not_there_are_refused(images, runs_dir, capsys):
    start = ["train", "--images", str(images), "--runs", str(runs_dir)]
    assert main([*start, "--set", "base_model=nowhere"]) == 2
    assert "no base model `nowhere`" in capsys.readouterr().err
    assert main([*start, "--preset", "nothing"]) == 2
    assert "no preset `nothing`" in capsys.readouterr().err


def test_a_run_that_cannot_work_is_refused_with_the_reason(large_images, runs_dir, real_size_folder, capsys):
    start = ["train", "--images", str(large_images), "--runs", str(runs_dir), "--set"]
    assert main([*start, f"base_model={real_size_folder}", "device=cpu"]) == 2
    assert "A base model of this size needs an NVIDIA card" in capsys.readouterr().err
    assert not runs_dir.exists()


def test_a_folder_of_z_image_turbo_gets_the_preset_for_a_subject(large_images, real_size_folder):
    asked = {"set": [f"base_model={real_size_folder}"], "preset": None, "trigger_word": ""}
    given = SimpleNamespace(images=large_images, **asked)
    config, _ = _read_settings(given)
    assert (config.batch_size, config.rank) == (1, 32)
    assert config.base_model == str(real_size_folder)


def test_notes_about_repaired_pictures_are_shown(train_arguments, images):
    Image.new("RGBA", (64, 64), (9, 9, 9, 99)).save(images / "0.png")
    code, out, _ = done([*train_arguments, "--detach"])
    assert code == 0
    assert "0.png" in out


@pytest.mark.skipif(os.name == "nt", reason="a console's Ctrl-C cannot be sent to one process there")
def test_ctrl_c_stops_the_run_with_a_checkpoint(train_arguments, runs_dir):
    process = started([*train_arguments, "steps=2000", "checkpoint_every=1000"])
    run = the_run(runs_dir)
    wait_for_step(run, 2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert "Stopping: the run saves a checkpoint first." in out
    status = run.status
    assert f"Stopped at step {status.step} of 2000." in out
    assert runs.latest_checkpoint(run).name == f"{status.step:06d}"


@pytest.mark.skipif(os.name == "nt", reason="a console's Ctrl-C cannot be sent to one process there")
def test_a_second_ctrl_c_leaves_the_run_to_stop_by_itself(train_arguments, runs_dir):
    process = started([*train_arguments, "name=slow-to-stop"])
    run = the_run(runs_dir)
    wait_for_step(run, 1)
    process.send_signal(signal.SIGINT)
    assert "Stopping" in next(line for line in process.stdout if "Stopping" in line)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "then stops" in out
    assert run.status.live


def test_killing_the_follower_leaves_the_run_alone(train_arguments, runs_dir):
    process = started([*train_arguments, "steps=50"])
    run = the_run(runs_dir)
    wait_for_step(run, 2)
    process.kill()
    process.communicate()
    wait_for_step(run, 50)


def test_a_failed_run_is_told_and_resumed(train_arguments, runs_dir):
    code, _, err = done([*train_arguments, "checkpoint_every=2", "name=fails-sentence"])
    assert code == 1
    assert "Failed: The model is gone. Fetch it again." in err
    run = the_run(runs_dir)
    assert f'python -m dopsd_app resume {run.id} --runs "{runs_dir}"' in err
    code, out, err = done(["resume", "latest", "--runs", runs_dir])
    assert (code, err) == (0, "")
    assert f"Run {run.id} goes on from step 2" in out
    assert "Step 4, checkpoint" in out
    assert "Step 2, checkpoint" not in out


def test_a_finished_run_makes_as_many_more_steps_as_it_is_told(train_arguments, runs_dir):
    done([*train_arguments, "steps=4", "checkpoint_every=2"])
    code, _, err = done(["resume", "latest", "--runs", runs_dir])
    assert code == 2
    assert "is finished already. Say how many more steps it is to make." in err
    code, out, err = done(["resume", "latest", "--steps", "3", "--runs", runs_dir])
    assert (code, err) == (0, "")
    assert f"Run {(run := the_run(runs_dir)).id} goes on from step 4 to 7" in out
    assert (run.status.step, run.config.steps) == (7, 7)


def test_a_second_run_waits_its_turn(train_arguments, runs_dir):
    done([*train_arguments, "--detach", "--set", "steps=200"])
    code, out, _ = done([*train_arguments, "name=second"])
    assert code == 0
    assert "Waiting: another run is at work, it is the next." in out
    assert [run.status.state for run in runs.list_runs(runs_dir)] == ["finished", "finished"]


def test_runs_are_listed_and_stopped(train_arguments, runs_dir):
    code, out, _ = done(["runs", "--runs", runs_dir])
    assert (code, out) == (0, f"There are no runs in {runs_dir}.\n")
    done([*train_arguments, "--detach", "--set", "steps=2000"])
    run = the_run(runs_dir)
    wait_for_step(run, 1)
    code, out, _ = done(["runs", "--runs", runs_dir])
    assert re.search(rf"{run.id}  training  \d+/2000  .*z-image.*  20\d\d-", out)
    code, out, _ = done(["stop", run.id[-12:], "--runs", runs_dir])
    assert (code, out) == (0, f"{run.id} saves a checkpoint and stops.\n")
    code, _, err = done(["stop", "nothing", "--runs", runs_dir])
    assert code == 2
    assert "No run begins with `nothing`" in err


def test_presets_are_listed(capsys):
    assert main(["presets"]) == 0
    assert "pocket: " in capsys.readouterr().out


def test_heavy_commands_say_who_has_the_gpu(train_arguments, images, runs_dir, capsys):
    done([*train_arguments, "--detach", "--set", "steps=2000"])
    run = the_run(runs_dir)
    wait_for_step(run, 1)
    assert main(["preview", *train_arguments[1:], "--out", str(runs_dir / "check.png")]) == 2
    assert f"{run.id} is being trained, and has not come to its first step" in capsys.readouterr().err


def test_arguments_that_cannot_work_are_refused_before_anything_is_loaded(images, runs_dir, capsys):
    assert main(["preview", "--images", str(images), "--runs", str(runs_dir), "--out", "check"]) == 2
    assert "`--out` must be a .png, .jpg or .webp file, got check" in capsys.readouterr().err
    assert main(["generate", "latest", "--prompt", "tok", "--runs", str(runs_dir)]) == 2
    assert "There are no runs" in capsys.readouterr().err


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"{__version__}\n"
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)


def test_without_a_terminal_or_a_file_to_write_to_nothing_fails():
    """As under Windows' `pythonw`, or with a closed standard output."""
    code = "import runpy, sys; sys.stdout = None; runpy.run_module('dopsd_app', run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", code, "presets"], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_help_names_every_command_and_needs_no_model():
    check = "import sys, dopsd_app.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\n"
    check += "assert not {'torch', 'gradio', 'PIL', 'numpy'} & sys.modules.keys()"
    result = subprocess.run(
        [sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for command in ("train", "preview", "generate", "runs", "stop", "resume", "presets", "examples:"):
        assert command in result.stdout


def test_the_help_of_commands_that_take_settings_lists_them_all(capsys):
    for command in ("train", "preview"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert list_settings() in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "resolution=512"], "`resolution` must be 64 for pocket-turbo, got 512."),
        (["--set", "stepz=3"], "There is no setting `stepz`. Did you mean `steps`?"),
    ],
)
def test_what_the_base_model_cannot_do_is_told_before_a_run_is_made(
    images, runs_dir, capsys, arguments, message
):
    assert main(["train", "--images", str(images), "--runs", str(runs_dir), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not runs.list_runs(runs_dir)
