"""The check of a base model: one that is right passes, and each planted fault is found."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file

from dopsd_app.check_base import check, fetch_and_check
from dopsd_app.checks import base_check
from dopsd_app.checks.base_check import _without_paths
from dopsd_app.errors import KnownFailure
from dopsd_app.gpus import Gpu
from dopsd_app.models import vision_language
from dopsd_app.models.base_report import PICTURES, TEXT, BaseReport, Finding, find_report, save_report
from dopsd_app.models.catalog import BaseModelPaths, find_base_model, find_facts, is_fetched
from dopsd_app.models.klein import Klein
from dopsd_app.models.z_image import ZImage
from dopsd_app.planning.machine import read_machine
from dopsd_app.planning.memory import ERROR, PROGRAM_ON_GPU, reckon
from dopsd_app.planning.plan import check_base, make_plan
from dopsd_app.progress import PhaseProgress
from dopsd_app.torch_build import KERNELS, VERSION, TorchBuild
from tests.support.downloader import Downloader
from tests.support.imitation_hub import ImitationHub
from tests.support.real_layout import save_qwen_vl_repository, save_z_image_repository
from tests.support.tiny_models import save_klein, save_vision_tower

LOOKS = ["files", "schedule", "text and eyes", "few steps", "pictures", "training step"]
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Reports of this test alone."""
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path


@pytest.fixture(scope="module")
def klein_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-klein")
    save_klein(folder)
    return folder


@pytest.fixture
def base(z_image_folder, tmp_path):
    """A copy of the tiny Z-Image, for a fault to be planted in."""
    return Path(shutil.copytree(z_image_folder, tmp_path / "of-ann"))


@pytest.fixture
def config(tiny_config, base):
    return replace(tiny_config, base_model=str(base), batch_size=1, rollout_steps=1, rank=2)


def run(config, tmp_path) -> tuple[BaseReport, Path, list]:
    """A whole check: its report, where that is kept, and what it told."""
    told, looks = [], check(config, tmp_path / "runs")
    while True:
        try:
            told.append(next(looks))
        except StopIteration as ended:
            return (*ended.value, told)


def change(file: Path, edit) -> None:
    """Writes a file of weights anew, with what `edit` makes of its tensors."""
    tensors = load_file(file)
    edit(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


# --- one that is right


def test_a_base_that_is_right_passes_and_the_report_can_be_sent(config, tmp_path):
    report, folder, told = run(config, tmp_path)
    assert [finding.name for finding in report.findings] == LOOKS
    assert report.passed and not report.problem
    assert [event for event in told if isinstance(event, Finding)] == list(report.findings)
    assert any(isinstance(event, PhaseProgress) for event in told)
    assert report.seconds > 0 and report.planned_seconds > 0
    assert find_report(config.base_model, "", "auto") == (report, folder)
    for name in PICTURES:
        with Image.open(folder / name) as picture:
            assert picture.size == (32, 32)
    text = (folder / TEXT).read_text()
    assert torch.__version__ in text and "dopsd" in text
    # No paths, no names.
    assert str(tmp_path) not in text and config.base_model not in text and Path.home().name not in text
    check_base(config)


@pytest.mark.parametrize("context", ["reference", "vision_language"])
def test_klein_passes_with_each_teacher(tiny_config, klein_folder, context, tmp_path):
    config = replace(
        tiny_config,
        base_model=str(klein_folder),
        teacher_context=context,
        teacher_picture_minimum=0 if context == "reference" else 64,
        teacher_picture_maximum=0 if context == "reference" else 64,
        batch_size=1,
        rollout_steps=1,
        resolution=64,  # the least that its pipeline takes as a reference
    )
    report, _, _ = run(config, tmp_path)
    assert report.passed, report.text
    assert report.teacher_context == context


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("name", ["z-image", "klein"])
def test_rounding_as_on_a_card_is_no_fault(config, klein_folder, name, quantization, tmp_path):
    config = replace(config, precision="bfloat16", quantization=quantization)
    if name == "klein":
        sides = {"resolution": 64, "teacher_picture_minimum": 0, "teacher_picture_maximum": 0}
        config = replace(config, base_model=str(klein_folder), **sides)
    report, _, _ = run(config, tmp_path)
    assert report.passed, report.text


def test_a_report_holds_until_a_file_changes(config, base, tmp_path):
    run(config, tmp_path)
    change(base / "transformer" / WEIGHTS, lambda tensors: None)
    assert find_report(config.base_model, "", "auto") is None


# --- planted faults, in a folder of which nobody tells what it should hold


def numbers_of_eight_bits(base):
    def edit(tensors):
        name = next(name for name in tensors if name.endswith("to_q.weight"))
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)

    change(base / "transformer" / WEIGHTS, edit)


def one_value_that_is_no_number(base):
    def edit(tensors):
        name = next(name for name in tensors if name.endswith("feed_forward.w1.weight"))
        tensors[name][0, 0] = float("nan")

    change(base / "transformer" / WEIGHTS, edit)


def eyes_of_zeros(base):
    def edit(tensors):
        for tensor in tensors.values():
            tensor.zero_()

    change(base / "vision_tower" / "model.safetensors", edit)


def eyes_of_another_width(base):
    shutil.rmtree(base / "vision_tower")
    save_vision_tower(base, width=16)


def an_autoencoder_of_zeros(base):
    def edit(tensors):
        for name, tensor in tensors.items():
            if name.startswith("decoder.conv_out"):
                tensor.zero_()

    change(base / "vae" / WEIGHTS, edit)


def a_text_encoder_for_fewer_words(base):
    def edit(tensors):
        tensors["embed_tokens.weight"] = tensors["embed_tokens.weight"][:32]

    change(base / "text_encoder" / "model.safetensors", edit)
    config = json.loads((base / "text_encoder" / "config.json").read_text())
    (base / "text_encoder" / "config.json").write_text(json.dumps(config | {"vocab_size": 32}))


def a_scheduler_that_goes_back(base):
    file = base / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"invert_sigmas": True}))


PLANTED = {
    numbers_of_eight_bits: ("few steps", "numbers of other kinds"),
    one_value_that_is_no_number: ("few steps", "not a number"),
    eyes_of_zeros: ("text and eyes", "does not see"),
    eyes_of_another_width: ("text and eyes", "do not belong together"),
    an_autoencoder_of_zeros: ("pictures", "one even colour"),
    a_text_encoder_for_fewer_words: ("text and eyes", "cannot be computed here"),
    a_scheduler_that_goes_back: ("schedule", "from 1 down to 0"),
}


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_found_and_the_base_is_not_trained_on(plant, config, base, tmp_path):
    plant(base)
    report, _, _ = run(config, tmp_path)
    look, words = PLANTED[plant]
    assert not report.passed
    assert report.findings[-1].name == look
    assert words in report.problem
    assert str(tmp_path) not in report.text and base.name not in report.text
    with pytest.raises(KnownFailure, match="did not pass its check"):
        check_base(config)


# --- planted faults in what is computed, as another version of a library could bring them


def test_another_rotary_base_in_the_teacher_is_found(config, tmp_path, monkeypatch):
    join = vision_language.join_encoders

    def other(text_encoder, *rest):
        encoder = join(text_encoder, *rest)
        encoder.language_model.config.rope_parameters["rope_theta"] = 5e6
        encoder.language_model.rotary_emb = vision_language.Qwen3VLTextRotaryEmbedding(
            encoder.language_model.config
        )
        return encoder

    monkeypatch.setattr(vision_language, "join_encoders", other)
    report, _, _ = run(config, tmp_path)
    assert "Without a picture" in report.problem


def test_time_or_sign_turned_around_is_found(config, tmp_path, monkeypatch):
    predict = ZImage.predict_velocity
    monkeypatch.setattr(ZImage, "predict_velocity", lambda *arguments: -predict(*arguments))
    report, _, _ = run(config, tmp_path)
    assert "differ from the official pipeline's" in report.problem


def test_features_of_another_layer_are_found(tiny_config, klein_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("dopsd_app.models.klein.AFTER", (9, 18, 26))
    config = replace(
        tiny_config,
        base_model=str(klein_folder),
        resolution=64,
        teacher_picture_minimum=0,
        teacher_picture_maximum=0,
    )
    report, _, _ = run(config, tmp_path)
    assert "What the student reads" in report.problem


def test_references_at_other_places_are_found(tiny_config, klein_folder, tmp_path, monkeypatch):
    places = Klein.predict_velocity.__globals__["_places"]
    monkeypatch.setattr("dopsd_app.models.klein._places", lambda time, latents: places(2 * time, latents))
    config = replace(
        tiny_config,
        base_model=str(klein_folder),
        resolution=64,
        teacher_picture_minimum=0,
        teacher_picture_maximum=0,
    )
    report, _, _ = run(config, tmp_path)
    assert "differ from the official pipeline's" in report.problem


# --- planted faults in what came from the Hub, which says of each file what it holds


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """A cache of the Hub's with Z-Image-Turbo and the eyes, laid out as the real ones are."""
    folder = tmp_path_factory.mktemp("repositories")
    save_z_image_repository(folder / "z-image")
    save_qwen_vl_repository(folder / "qwen")
    home = tmp_path_factory.mktemp("home")
    with ImitationHub() as hub, Downloader(hub, tmp_path_factory.mktemp("process")) as call:
        hub.add_model("Tongyi-MAI/Z-Image-Turbo", folder / "z-image")
        hub.add_model("Qwen/Qwen3-VL-4B-Instruct", folder / "qwen")
        call(home, "fetch", "z-image-turbo")
    return home


@pytest.fixture
def turbo(fetched, tiny_config, tmp_path, monkeypatch):
    """A configuration of what was fetched, in a cache of this test's own."""
    home = shutil.copytree(fetched, tmp_path / "home", symlinks=True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(home / "assets"))
    settings = {"base_model": "z-image-turbo", "batch_size": 1, "rollout_steps": 1, "num_inference_steps": 8}
    return replace(tiny_config, **settings)


def place_of(config):
    return find_base_model(config.base_model)


def flip_a_bit(file: Path) -> None:
    file = file.resolve()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def a_flipped_bit_in_a_shard(config):
    flip_a_bit(next((place_of(config).folder / "transformer").glob("*-00002-of-*.safetensors")))


def a_flipped_bit_in_the_eyes(config):
    flip_a_bit(place_of(config).vision_tower / "model.safetensors")


def another_tokenizer(config):
    file = place_of(config).folder / "tokenizer" / "tokenizer.json"
    file.write_text(file.read_text().replace('"Ġa"', '"Ġb"'))


def another_scheduler_shift(config):
    file = place_of(config).folder / "scheduler" / "scheduler_config.json"
    file.write_text(file.read_text().replace('"shift": 3.0', '"shift": 5.0'))


DAMAGED = {
    a_flipped_bit_in_a_shard: "-00002-of-",
    a_flipped_bit_in_the_eyes: "model.safetensors",
    another_tokenizer: "tokenizer/tokenizer.json",
    another_scheduler_shift: "scheduler/scheduler_config.json",
}


def test_what_came_from_the_hub_passes(turbo, tmp_path):
    report, _, _ = run(turbo, tmp_path)
    assert report.passed, report.text
    assert report.base_model == "z-image-turbo" and report.commit
    read = report.findings[0].sentence
    # 22 files of the repository, and the eyes.
    assert "each holds what the Hub says" in read and int(read.split()[0]) == len(known_files(turbo))


def known_files(config):
    place = place_of(config)
    return [*(path for path in place.folder.rglob("*") if path.is_file()), place.vision_tower]


@pytest.mark.parametrize("plant", DAMAGED, ids=lambda plant: plant.__name__)
def test_a_damaged_file_is_found_and_thrown_away_so_that_it_alone_is_fetched(plant, turbo, tmp_path):
    plant(turbo)
    there = set(known_files(turbo))
    report, _, _ = run(turbo, tmp_path)
    assert [finding.name for finding in report.findings] == ["files"]
    assert DAMAGED[plant] in report.problem and "thrown away" in report.problem
    assert not is_fetched("z-image-turbo")
    gone = {path for path in there if not path.exists()}
    assert len(gone - {path for path in there if path.is_dir()}) <= 1


def test_a_missing_shard_is_told_before_anything_is_read(turbo, tmp_path):
    next((place_of(turbo).folder / "transformer").glob("*-00001-of-*.safetensors")).unlink()
    with pytest.raises(KnownFailure, match=r"incomplete: it lacks transformer/.*-00001-of-"):
        run(turbo, tmp_path)


def test_another_shift_is_found_where_nobody_says_what_the_files_should_hold(turbo, tmp_path):
    another_scheduler_shift(turbo)
    for record in (tmp_path / "home" / "assets").rglob("bases/**/*.json"):
        record.unlink()
    report, _, _ = run(turbo, tmp_path)
    assert "could not be asked" in report.findings[0].sentence
    assert report.findings[-1].name == "schedule" and "Z-Image-Turbo was made for" in report.problem


# --- what it measures replaces what was reckoned


def test_the_measured_step_replaces_the_reckoned_one_and_other_settings_follow_from_it(config, tmp_path):
    before = make_plan(config, pictures=4, runs_dir=tmp_path / "runs", machine=read_machine())
    assert "rough estimate" in before.source
    report, _, _ = run(config, tmp_path)
    plan = make_plan(config, pictures=4, runs_dir=tmp_path / "runs", machine=read_machine())
    assert plan.source == "measured when the base model was checked here"

    def expected(plan, steps):  # for the computer as it is now, not as it was when it was measured
        return pytest.approx(steps * report.seconds * plan.promise.slowness / report.slowness)

    assert plan.seconds_per_step == expected(plan, 1)
    # Four pictures a step are four times the work.
    more = make_plan(
        replace(config, batch_size=4), pictures=4, runs_dir=tmp_path / "runs", machine=read_machine()
    )
    assert more.source == "reckoned from the check of the base model here"
    assert more.seconds_per_step == expected(more, 4)


def test_memory_that_a_step_took_on_the_card_corrects_what_training_is_planned_with(config, tmp_path):
    """Half as much again as planned when it was checked: of other settings, too, but of training alone."""
    card = Gpu("NVIDIA GeForce RTX 4070", 12 * 2**30, 11 * 2**30, capability=(8, 9))
    torch_build = TorchBuild(VERSION, "13.0", KERNELS["x86_64"]["13.0"])
    machine = replace(read_machine(), gpus=(card,), torch=torch_build)
    report, folder, _ = run(config, tmp_path)
    save_report(replace(report, planned_memory=2_000_000, memory=3_000_000), folder)
    for rank in (2, 64):
        settings = replace(config, rank=rank)
        sizes = find_facts(config.base_model).sizes_for(settings)
        plan = make_plan(settings, pictures=4, runs_dir=tmp_path / "runs", machine=machine)
        reckoned = reckon(settings, sizes, plan.fitted.plan, on_gpu=True)
        training = (reckoned.training - PROGRAM_ON_GPU) * 1.5 * (1 + ERROR[True])
        assert plan.fitted.memory.training == PROGRAM_ON_GPU + round(training)
        assert plan.fitted.memory.drawing == reckoned.drawing


# --- what may be sent, and what is left alone


@pytest.mark.parametrize(
    ("told", "sent"),
    [
        ("cannot import name 'x' from 'y' (/home/ann.smith/app/lib/y.py)", "(.../y.py)"),
        (
            r"No such file: 'C:\\Users\\Ann Smith\\models\\vae.json'",
            "'.../vae.json'",
        ),  # as Windows doubles them
        (r"C:\Users\Ann Smith\models\vae.json is damaged", ".../vae.json is damaged"),
        ("about 1/2 of it, or 3 GB/s", "about 1/2 of it, or 3 GB/s"),
    ],
)
def test_no_path_of_the_person_stays_in_a_report(told, sent, tmp_path):
    kept = _without_paths(told, BaseModelPaths(tmp_path, None))
    assert sent in kept and "nn" not in kept.replace("cannot", "")


def test_a_persons_own_file_is_never_removed_whatever_lies_beside_it(config, base, tmp_path):
    """As somebody would keep the hash of a file: with its name behind it."""
    eyes = base / "vision_tower" / "model.safetensors"
    eyes.with_name("model.safetensors.sha256").write_text("0" * 64 + "  model.safetensors\n")
    report, _, _ = run(config, tmp_path)
    assert report.passed and eyes.is_file()


def test_a_link_of_the_cache_to_a_persons_own_file_leaves_that_alone(turbo, tmp_path):
    own = tmp_path / "own.safetensors"
    link = next((place_of(turbo).folder / "transformer").glob("*-00002-of-*.safetensors"))
    own.write_bytes(link.read_bytes())
    flip_a_bit(own)
    link.unlink()
    link.symlink_to(own)
    report, _, _ = run(turbo, tmp_path)
    assert "files of your own" in report.problem and own.is_file()


def test_a_file_that_the_hub_lists_and_is_not_here_is_told(turbo, tmp_path):
    """As where another program fetched the model, without all that the Hub lists."""
    (place_of(turbo).folder / "text_encoder" / "generation_config.json").unlink()
    with pytest.raises(KnownFailure, match=r"lacks text_encoder/generation_config\.json"):
        run(turbo, tmp_path)


def test_what_failed_is_not_trained_on_by_a_resumed_run_either(config, base, tmp_path):
    eyes_of_zeros(base)
    run(config, tmp_path)
    with pytest.raises(KnownFailure, match="did not pass its check"):
        list(fetch_and_check(config, tmp_path / "runs"))


def test_no_memory_is_no_verdict_on_the_base(config, tmp_path, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("dopsd_app.checks.base_check.prepare", fail)
    with pytest.raises(KnownFailure, match="memory does not suffice"):
        run(config, tmp_path)
    assert find_report(config.base_model, "", "auto") is None
    check_base(config)


def test_nothing_of_it_stays_in_memory(config, tmp_path, monkeypatch):
    kept = []
    load = base_check.load_base_model

    def load_and_keep(*given):
        kept.append(load(*given))
        return kept[-1]

    monkeypatch.setattr(base_check, "load_base_model", load_and_keep)
    run(config, tmp_path)
    assert kept[0].transformer is None and kept[0].text_encoder is None
