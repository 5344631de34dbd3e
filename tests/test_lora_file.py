"""The LoRA file: what stands in it, and that the check finds everything that can be wrong with it."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dopsd_app import __version__
from dopsd_app.checks.lora_check import LoraCheck, check_lora
from dopsd_app.jobs.job import RunError
from dopsd_app.jobs.lora_file import LORA_SCHEMA, check_intact
from dopsd_app.jobs.manifest import hash_file
from dopsd_app.jobs.runs import LORA_FILE, Run
from dopsd_app.method.adapters import adapter_arrays, adapter_weights, add_adapters
from dopsd_app.method.lora_file import save_lora
from dopsd_app.method.lora_metadata import describe_lora
from dopsd_app.models.catalog import find_facts
from dopsd_app.models.load import load_base_model
from dopsd_app.models.memory_plan import MemoryPlan
from dopsd_app.models.protocol import NO_PICTURES
from tests.support.encoded import make_example, trained


@pytest.fixture
def config(tiny_config):
    return replace(tiny_config, rank=4, lora_alpha=6.0, trigger_word="zorp", seed=3)  # strength 1.5


def save_trained(base_model, config, path, size=0.05):
    """A student whose B is of this size on the base, written as a file."""
    base_model.load_encoders()
    base_model.load_transformer()
    example = make_example(base_model, 0, "a dog")
    add_adapters(base_model.transformer, base_model.lora_targets, config)
    trained(base_model, size)
    metadata = describe_lora(config, find_facts(config.base_model), [["a zorp", "zorp"]], 7)
    save_lora(path, adapter_arrays(base_model.transformer, "student"), config.strength, metadata)
    return example.student[0]


def check(base_model, config, path, conditioning):
    return check_lora(path, base_model, config, conditioning, 32, 32)


def test_the_file_holds_diffusers_keys_with_the_strength_folded_in(config, tmp_path):
    base_model = load_base_model(config)
    path = tmp_path / LORA_FILE
    save_trained(base_model, config, path)
    tensors = load_file(path)
    assert len(tensors) == 2 * 7 * 4
    student = adapter_weights(base_model.transformer, "student")
    module = "layers.1.feed_forward.w2"
    assert tensors[f"transformer.{module}.lora_A.weight"].equal(student[f"{module}.lora_A.weight"])
    torch.testing.assert_close(
        tensors[f"transformer.{module}.lora_B.weight"], 1.5 * student[f"{module}.lora_B.weight"].detach()
    )
    assert not any("alpha" in name for name in tensors)


def test_the_metadata_says_how_it_was_made_and_holds_no_path(config, tmp_path):
    path = tmp_path / LORA_FILE
    save_trained(load_base_model(config), config, path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert "lora_adapter_metadata" not in metadata  # its alpha would be applied on top
    facts = json.loads(metadata["dopsd"])
    assert {key: facts[key] for key in ("rank", "alpha", "steps", "seed", "trigger_word")} == {
        "rank": 4,
        "alpha": 6.0,
        "steps": 7,
        "seed": 3,
        "trigger_word": "zorp",
    }
    assert "/" not in facts["base_model"]
    assert (facts["schema"], facts["version"]) == (LORA_SCHEMA, __version__)
    assert set(facts["versions"]) == {"torch", "diffusers", "transformers", "peft"}


def test_a_good_file_passes_exactly_in_float32(config, tmp_path):
    base_model, path = load_base_model(config), tmp_path / LORA_FILE
    conditioning = save_trained(base_model, config, path)
    result = check(base_model, config, path, conditioning)
    assert result.problems == []
    assert (result.modules, result.exact) == (28, True)
    assert result.strength == pytest.approx((1, 1), abs=1e-4)
    assert result.velocity_error <= 1e-4
    assert "28 modules at strength 1.000" in result.summary


@pytest.mark.parametrize("size", [0.05, 0.01, 0.001])  # a weak LoRA is no worse a file
@pytest.mark.parametrize(("precision", "quantization"), [("bfloat16", "none"), ("float32", "nf4")])
def test_a_good_file_passes_within_5_percent_on_a_rounded_base(
    config, tmp_path, precision, quantization, size
):
    config = replace(config, precision=precision)
    memory_plan = MemoryPlan(quantization=quantization)
    base_model, path = load_base_model(config, memory_plan), tmp_path / LORA_FILE
    conditioning = save_trained(base_model, config, path, size)
    result = check(base_model, config, path, conditioning)
    assert result.problems == []
    assert not result.exact
    assert result.effect_error <= 0.05


def test_a_good_file_passes_on_an_int8_base(config, tmp_path):
    base_model, path = load_base_model(config, MemoryPlan(quantization="int8")), tmp_path / LORA_FILE
    conditioning = save_trained(base_model, config, path)
    result = check(base_model, config, path, conditioning)
    assert result.problems == [] and not result.exact
    assert (result.modules, result.missing_modules) == (28, ())


def test_a_bad_file_is_found_on_a_rounded_base_too(config, tmp_path):
    config = replace(config, precision="bfloat16")
    base_model, path = load_base_model(config), tmp_path / LORA_FILE
    conditioning = save_trained(base_model, config, path)
    rewritten(path, lambda tensors: {n: t.flip(0) if "layers.1" in n else t for n, t in tensors.items()})
    result = check(base_model, config, path, conditioning)
    assert result.effect_error > 0.05
    assert any("Its effect differs" in said for said in result.problems)


def test_what_rounding_alone_does_is_told_apart(config, tmp_path):
    config = replace(config, precision="bfloat16")
    base_model, path = load_base_model(config), tmp_path / LORA_FILE
    conditioning = save_trained(base_model, config, path, size=0.001)
    result = check(base_model, config, path, conditioning)
    assert result.rounding > 0.05 > result.effect_error


def test_nf4_replaces_what_the_lora_adapts_and_stays_close_to_the_base(config):
    exact, quantized = (load_base_model(config, MemoryPlan(quantization=name)) for name in ("none", "nf4"))
    for base_model in (exact, quantized):
        base_model.load_transformer()
    layer = quantized.transformer.layers[0]
    assert type(layer.attention.to_q).__name__ == type(layer.feed_forward.w1).__name__ == "Nf4Linear"
    assert layer.attention.to_q.weight.dtype == torch.uint8
    assert layer.attention.to_q.weight.numel() == 32 * 32 / 2
    exact.load_encoders()
    conditioning = exact.encode(NO_PICTURES, "a dog", "student")
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, second = (
            m.predict_velocity(noise, torch.tensor(0.9), [conditioning]) for m in (exact, quantized)
        )
    assert 0 < ((first - second).norm() / first.norm()).item() < 0.3


def rewritten(path, change):
    tensors = change(load_file(path))
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda tensors: {n: t / 1.5 if "lora_B" in n else t for n, t in tensors.items()},
            "It loads at a strength of 0.667 to 0.667, not 1.",
        ),
        (
            lambda tensors: {
                n: 0 * t if "layers.0.attention.to_q.lora_B" in n else t for n, t in tensors.items()
            },
            "1 modules have no effect.",
        ),
        (
            lambda tensors: {n: t for n, t in tensors.items() if "layers.0.attention.to_q" not in n},
            "1 trained modules were not loaded back.",
        ),
        (
            lambda tensors: {n: t.flip(0) if "lora_A" in n else t for n, t in tensors.items()},
            "Its predictions differ",
        ),
    ],
    ids=["strength not folded", "a zero delta", "a module missing", "other weights"],
)
def test_a_bad_file_is_found(config, tmp_path, change, problem):
    base_model, path = load_base_model(config), tmp_path / LORA_FILE
    conditioning = save_trained(base_model, config, path)
    rewritten(path, change)
    result = check(base_model, config, path, conditioning)
    assert any(problem in said for said in result.problems)
    assert "kept" in result.summary
    result.save(tmp_path / "lora_check.json")
    assert json.loads((tmp_path / "lora_check.json").read_text())["passed"] is False


def test_a_file_that_diffusers_refuses_is_a_failed_check_not_a_failed_run(config, tmp_path):
    base_model, path = load_base_model(config), tmp_path / LORA_FILE
    conditioning = save_trained(base_model, config, path)
    alpha = {"transformer.layers.0.attention.to_q.alpha": torch.tensor(6.0)}
    rewritten(path, lambda tensors: {**tensors, **alpha})
    result = check(base_model, config, path, conditioning)
    assert len(result.problems) == 1
    assert "Loading it back failed" in result.summary


def test_the_check_of_an_earlier_version_is_found_under_its_old_name(tmp_path):
    run = Run(tmp_path)
    save_file({"weight": torch.ones(2)}, run.lora_file)
    written = hash_file(run.lora_file)
    LoraCheck(sha256=written).save(tmp_path / "check.json")
    check_intact(run, run.lora_file)
    run.lora_file.write_bytes(b"as a bad disk left it")
    with pytest.raises(RunError, match="does not hold what was written"):
        check_intact(run, run.lora_file)

    # A run that goes on drops what was found before, and keeps what is found then under the new name.
    run.check_file.unlink()
    save_file({"weight": torch.zeros(2)}, run.lora_file)
    LoraCheck(sha256=hash_file(run.lora_file)).save(run.check_file)
    check_intact(run, run.lora_file)
    assert {path.name for path in tmp_path.glob("*check*")} == {"lora_check.json"}
