"""How the page says what the program says: nothing in backticks, which are for terminals."""

import re
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest

from dopsd_app import ui
from dopsd_app.config import TrainConfig, load_preset, make_config
from dopsd_app.errors import KnownFailure
from dopsd_app.planning.machine import Machine
from dopsd_app.planning.plan import make_plan
from dopsd_app.torch_build import TorchBuild
from dopsd_app.ui import words
from dopsd_app.ui.plan import plainly
from dopsd_app.ui.server.guard import guarded
from dopsd_app.ui.use_file import _comfyui

GIB = 1024**3
POCKET = make_config(load_preset("pocket").settings)


def test_code_in_a_message_is_shown_as_code_and_nothing_of_it_becomes_html():
    assert words.message("Run `hf auth login` once.") == "Run <code>hf auth login</code> once."
    said = words.message("`<b>` & a lone ` stay text")
    assert said == "<code>&lt;b&gt;</code> &amp; a lone ` stay text"
    assert words.lines(["Set `x`."], "advice") == "<p class='advice'>Set <code>x</code>.</p>"


@pytest.mark.parametrize(
    "changes",
    [
        {"base_model": "no-such-model"},
        {"revision": "main"},
        {"resolution": 128},
        {"device": "cuda"},
        {"teacher_context": "reference"},
        {"base_model": "z-image-turbo", "device": "cpu"},
        {"num_inference_steps": 8, "rank": 10**7},
    ],
)
def test_no_sentence_of_a_plan_brings_backticks_to_the_page(changes):
    machine = Machine((), TorchBuild(), 16 * GIB, 12 * GIB, 2)
    plan = make_plan(replace(POCKET, **changes), pictures=6, runs_dir=Path("no-runs"), machine=machine)
    said = (*plan.problems, *plan.warnings)
    assert said
    assert "`" not in words.lines([plainly(line) for line in said], "problem")


def test_an_error_s_words_are_plain_text(monkeypatch):
    monkeypatch.delenv("SYSTEM", raising=False)

    def refuse():
        raise KnownFailure("Sign in with `hf auth login`.")

    with pytest.raises(Exception, match="Sign in with hf auth login") as caught:
        guarded(refuse)(None)
    assert "`" not in str(caught.value)


@pytest.mark.parametrize(("title", "kind"), [("", "Info"), ("This does not fit", "Warning")])
def test_what_is_said_in_passing_is_plain_text_whatever_a_run_is_called(monkeypatch, title, kind):
    said = []
    monkeypatch.setattr(gr, kind, lambda message, **options: said.append(message))
    words.passing("<img src=x onerror=alert(1)> is deleted: see `runs`.", title=title)
    assert said == ["(img src=x onerror=alert(1)) is deleted: see runs."]


def test_nothing_is_said_in_passing_in_another_way():
    elsewhere = [it for it in Path(ui.__file__).parent.rglob("*.py") if it.name != "words.py"]
    assert not [
        file.name for file in elsewhere if re.search(r"gr\.(Info|Warning)\b", file.read_text("utf-8"))
    ]


def test_comfyui_is_spoken_of_only_where_it_knows_the_base(
    new_run, tmp_path, z_image_folder, real_size_folder
):
    def said(base_model):
        return _comfyui(new_run(TrainConfig(base_model=str(base_model))), "zorp.safetensors")

    assert "ComfyUI" in said("z-image-turbo")
    assert "ComfyUI" in said(real_size_folder)  # a fine-tune of it, by its size
    assert said("pocket-turbo") == said(z_image_folder) == ""
    assert said(tmp_path / "gone") == ""
