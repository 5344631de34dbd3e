"""FLUX.2 klein, proved against the official pipeline on tiny random weights in float32."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
from PIL import ImageChops
from safetensors.torch import load_file

from dopsd_app.config import TrainConfig
from dopsd_app.data.pictures import read_examples
from dopsd_app.jobs.events import HealthMeasured, LoraChecked, PreviewSaved, StepDone
from dopsd_app.jobs.runs import create_run
from dopsd_app.method.adapters import add_adapters, as_base
from dopsd_app.method.rollout import rollout, sample, training_sigmas
from dopsd_app.models.architecture import BY_EYES, BaseModelError
from dopsd_app.models.klein import Klein
from dopsd_app.models.klein_facts import CAPTION_TOKENS, KLEIN, KLEIN_4B, KLEIN_9B
from dopsd_app.models.load import load_base_model
from dopsd_app.models.memory_plan import MemoryPlan
from dopsd_app.models.protocol import NO_PICTURES, Conditioning, Pictures
from dopsd_app.train import train
from tests.support.pictures import make_picture
from tests.support.tiny_models import save_klein
from tests.support.torn_run import train_and_tear

CAPTIONS = ("a dog", "a longer caption, with [V] and ümlauts", "")


@pytest.fixture(scope="module")
def klein_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-klein")
    save_klein(folder)
    return folder


@pytest.fixture
def config(klein_folder):
    return TrainConfig(
        base_model=str(klein_folder),
        steps=4,
        rollout_steps=4,
        num_inference_steps=4,
        batch_size=2,
        rank=4,
        resolution=64,
        optimizer="adamw",
    )


@pytest.fixture
def klein(config):
    """The tiny model, all parts loaded, in float32."""
    base_model = load_base_model(config)
    base_model.load_encoders()
    base_model.load_transformer()
    return base_model


def pipeline_latents(base_model, noise, steps, **inputs):
    """Latents (1, C, h, w) after every step of the official pipeline."""
    visited = []

    def keep(pipeline, index, timestep, values):
        visited.append(values["latents"].mT.unflatten(2, noise.shape[2:]).clone())
        return {}

    pipeline = base_model.make_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    height, width = (16 * side for side in noise.shape[2:])
    pipeline(
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=KLEIN.guidance,
        latents=noise.clone(),
        output_type="latent",
        callback_on_step_end=keep,
        **inputs,
    )
    return visited


def noise_of(rows, columns):
    return torch.randn(1, 16, rows, columns, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("steps", [4, 8])
@pytest.mark.parametrize("size", [(4, 4), (2, 6)])
def test_rollout_of_the_base_visits_the_states_of_the_pipeline(klein, config, steps, size):
    noise = noise_of(*size)
    expected = pipeline_latents(klein, noise, steps, prompt="a dog")
    add_adapters(klein.transformer, klein.lora_targets, config)
    student = [klein.encode(NO_PICTURES, "a dog", "student")]
    sigmas = klein.sigmas(steps, *(16 * side for side in size))
    with as_base(klein.transformer):
        states = [step.latents for step in rollout(klein, student, student, noise, sigmas)]
        states.append(sample(klein, student, noise, sigmas))
    assert len(expected) == steps
    for state, latents in zip(states[1:], expected, strict=True):
        torch.testing.assert_close(state, latents, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sides", [[(64, 64)], [(96, 64), (64, 128)]])
def test_references_are_seen_as_the_pipelines_pictures_are(klein, config, sides):
    pictures = [make_picture(number, *side) for number, side in enumerate(sides)]
    noise = noise_of(4, 4)
    expected = pipeline_latents(klein, noise, 4, prompt="a dog", image=pictures)
    references = tuple(klein._reference(picture) for picture in pictures)
    features = klein.encode(NO_PICTURES, "a dog", "student").prompt_embeds
    conditioning = [Conditioning(features, references)]
    add_adapters(klein.transformer, klein.lora_targets, config)
    with as_base(klein.transformer):
        walk = rollout(klein, conditioning, conditioning, noise, klein.sigmas(4, 64, 64))
        states = [step.latents for step in walk]
    for state, latents in zip(states[1:], expected, strict=False):
        torch.testing.assert_close(state, latents, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("size", "sigmas"),
    [((1024, 1024), (1, 0.967, 0.908, 0.767, 0)), ((512, 512), None), ((768, 1280), None), ((64, 64), None)],
)
def test_sigmas_equal_those_the_pipeline_leaves_in_its_scheduler(klein, size, sigmas):
    own = klein.sigmas(4, *size)
    if sigmas:
        torch.testing.assert_close(own, torch.tensor(sigmas), atol=5e-4, rtol=0)
    if size != (1024, 1024):
        pipeline_latents(klein, noise_of(*(side // 16 for side in size)), 4, prompt="a dog")
        torch.testing.assert_close(own, klein.scheduler.sigmas)


@pytest.mark.parametrize("states", [1, 2, 4])
def test_a_rollout_visits_only_sigmas_of_the_pipelines_own_few(klein, config, states):
    sigmas = training_sigmas(klein, replace(config, rollout_steps=states), (512, 512))
    assert torch.equal(sigmas, klein.sigmas(4, 512, 512)[:: 4 // states])
    # Its shift depends on the number of steps: a grid of as many as are visited would be another one.
    assert torch.equal(sigmas, klein.sigmas(states, 512, 512)) == (states != 2)
    assert KLEIN_4B.native_steps == KLEIN_9B.native_steps == 4


@pytest.mark.parametrize("caption", CAPTIONS)
def test_student_features_equal_encode_prompt(klein, caption):
    expected, _ = klein.make_pipeline().encode_prompt([caption])
    features = klein.encode(NO_PICTURES, caption, "student").prompt_embeds
    assert features.shape == (CAPTION_TOKENS, 3 * 16)  # padding and all, of three layers side by side
    torch.testing.assert_close(features, expected[0], atol=1e-5, rtol=1e-5)


def test_the_teacher_has_the_picture_as_a_reference_and_is_told_to_keep_to_it(klein):
    picture = make_picture(0, 64, 96)
    teacher = klein.encode(Pictures(picture), "a dog", "teacher")
    (reference,) = teacher.reference_latents
    assert reference.equal(klein.encode_picture(picture))
    told = "Keep the details of the subject, the background and the composition as they are in the reference."
    expected, _ = klein.make_pipeline().encode_prompt([f"a dog {told}"])
    torch.testing.assert_close(teacher.prompt_embeds, expected[0], atol=1e-5, rtol=1e-5)
    student = klein.encode(Pictures(picture), "a dog", "student")
    assert student.reference_latents == ()


@pytest.fixture
def by_eyes(config):
    """The tiny model whose teacher sees by a vision tower, with four tokens of each picture."""
    seeing = {"teacher_picture_minimum": 64, "teacher_picture_maximum": 64}
    base_model = load_base_model(replace(config, teacher_context=BY_EYES, **seeing))
    base_model.load_encoders()
    return base_model


def test_a_teacher_with_eyes_has_the_picture_in_its_message(by_eyes):
    first, second = (by_eyes.encode(Pictures(make_picture(n)), "a dog", "teacher") for n in range(2))
    assert first.reference_latents == ()
    # Two marks around it, and all is padded to the same length behind the caption as without a picture.
    assert first.prompt_embeds.shape == (CAPTION_TOKENS + 2 * 2 + 2, 3 * 16)
    assert not torch.allclose(first.prompt_embeds, second.prompt_embeds, atol=1e-4)
    assert by_eyes.picture_features(make_picture(0)).shape == (4, 16)


def test_a_teacher_with_eyes_and_no_picture_sees_exactly_what_the_student_sees(by_eyes):
    message = by_eyes._message("a dog")
    states = by_eyes.teacher_encoder(
        input_ids=message.input_ids,
        attention_mask=message.attention_mask,
        position_ids=torch.arange(CAPTION_TOKENS).expand(3, 1, -1),
        output_hidden_states=True,
    ).hidden_states
    student = by_eyes.encode(NO_PICTURES, "a dog", "student").prompt_embeds
    torch.testing.assert_close(torch.cat([states[n] for n in (9, 18, 27)], dim=-1)[0], student)


def test_padding_behind_a_picture_is_counted_on_as_words_are(by_eyes, monkeypatch):
    seen = []
    forward = type(by_eyes.teacher_encoder).forward
    monkeypatch.setattr(
        type(by_eyes.teacher_encoder),
        "forward",
        lambda self, **given: seen.append(given["position_ids"]) or forward(self, **given),
    )
    by_eyes.encode(Pictures(make_picture(0, 64, 64)), "a dog", "teacher")
    ((_, (places,), _),) = (seen[0].tolist(),)
    # 2 x 2 tokens of a picture take the places of its longer side, and what follows goes on from there.
    assert places[-4:] == [CAPTION_TOKENS + 2 + 2 - n for n in (4, 3, 2, 1)]


@pytest.mark.parametrize("told", [{}, {"is_distilled": False}])
def test_its_undistilled_sister_is_refused(klein_folder, tmp_path, told):
    """On the Hub its model_index.json says nothing; saved by diffusers, it says no."""
    folder = tmp_path / "klein-base"
    shutil.copytree(klein_folder, folder)
    index = folder / "model_index.json"
    fields = json.loads(index.read_text())
    assert fields.pop("is_distilled") is True
    index.write_text(json.dumps(fields | told))
    with pytest.raises(BaseModelError, match="was not made to draw in a few steps"):
        load_base_model(TrainConfig(base_model=str(folder)))


@pytest.mark.process
@pytest.mark.parametrize("context", ["reference", BY_EYES])
def test_a_run_ends_with_a_checked_lora_and_resumes_to_the_same_bytes(config, tmp_path, context):
    settings = {"steps": 2, "checkpoint_every": 1, "preview_every": 2, "memory_limit": 0.1}
    seeing = {"teacher_picture_minimum": 64, "teacher_picture_maximum": 64, "teacher_context": context}
    config = replace(config, **settings, **seeing, learning_rate=1e-3)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, width in enumerate((64, 64, 128, 64)):
        make_picture(number, width, 64).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text(f"my dog number {number}\n")
    dataset = read_examples(pictures, minimum_side=64)
    whole = create_run(tmp_path / "runs", config, dataset)
    events, torn = train_and_tear(whole)
    checked = next(event for event in events if isinstance(event, LoraChecked))
    assert checked.passed, checked.summary
    assert {event.kind for event in events if isinstance(event, PreviewSaved)} == {"rollout", "samples"}
    assert bool([event for event in events if isinstance(event, HealthMeasured)]) == (context == BY_EYES)
    assert len(load_file(whole.lora_file)) == 2 * (2 * 12 + 3 * 2)
    assert [event.step for event in train(torn) if isinstance(event, StepDone)] == [2]
    assert torn.lora_file.read_bytes() == whole.lora_file.read_bytes()


def test_eyes_come_with_the_teacher_that_sees_by_them(klein, by_eyes, klein_folder):
    assert klein.eyes is None and by_eyes.eyes == klein_folder / "vision_tower"
    assert [KLEIN.eyes_for(BY_EYES, width).repository for width in (2560, 4096)] == [
        "Qwen/Qwen3-VL-4B-Instruct",
        "Qwen/Qwen3-VL-8B-Instruct",
    ]
    assert KLEIN.eyes_for("auto", 2560) is None


def test_how_large_the_reference_is_can_be_chosen(klein, config):
    picture = Pictures(make_picture(0, 256, 128))
    assert klein.encode(picture, "a dog", "teacher").reference_latents[0].shape == (16, 8, 16)
    small = load_base_model(replace(config, teacher_picture_maximum=90))
    small.load_encoders()
    # 256 x 128 has four times the area of 90 x 90: half as wide and as high, in multiples of 16.
    assert small.encode(picture, "a dog", "teacher").reference_latents[0].shape == (16, 4, 8)
    assert small.conditioning_version != klein.conditioning_version
    with pytest.raises(BaseModelError, match="between 64 and 1024"):
        load_base_model(replace(config, teacher_picture_maximum=2048))


def test_a_caption_that_would_be_cut_off_is_refused(klein):
    with pytest.raises(BaseModelError, match=r"“xxx.* is too long: .* and 512 can be read"):
        klein.encode(NO_PICTURES, "x" * 600, "student")


def test_captions_and_references_of_different_sizes_in_a_batch_equal_one_by_one(klein):
    pictures = [make_picture(0, 64, 64), make_picture(1, 96, 64), make_picture(2, 64, 64)]
    conditionings = [klein.encode(Pictures(picture), "a dog", "teacher") for picture in pictures]
    noise, sigma = torch.randn(3, 16, 4, 4), torch.tensor([0.9, 0.5, 0.1])
    for chosen in ([0, 1, 2], [0, 2]):  # of several sizes, and of one
        together = klein.predict_velocity(noise[chosen], sigma[chosen], [conditionings[n] for n in chosen])
        alone = [klein.predict_velocity(noise[[n]], sigma[n], [conditionings[n]]) for n in chosen]
        torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_a_picture_there_and_back_is_what_the_autoencoder_makes_of_it(klein):
    picture = make_picture(0, 64, 96)
    latents = klein.encode_picture(picture)
    assert latents.shape == klein.latent_shape(96, 64) == (16, 6, 4)
    pipeline: Flux2KleinPipeline = klein.make_pipeline()
    pixels = pipeline.image_processor.preprocess(picture)
    expected = pipeline._encode_vae_image(pixels, generator=None)
    torch.testing.assert_close(latents[None], expected, atol=1e-5, rtol=1e-5)
    (decoded,) = klein.decode(latents[None])
    raw = klein.vae.decode(klein.vae.encode(pixels).latent_dist.mode()).sample
    (by_hand,) = pipeline.image_processor.postprocess(raw.detach())
    assert decoded.size == (64, 96)
    assert max(high for _, high in ImageChops.difference(decoded, by_hand).getextrema()) <= 1


def test_a_lora_adapts_twelve_modules_of_each_double_and_two_of_each_single_block(klein, config):
    add_adapters(klein.transformer, klein.lora_targets, config)
    adapted = {name for name, module in klein.transformer.named_modules() if hasattr(module, "lora_A")}
    assert len(adapted) == 2 * 12 + 3 * 2
    assert not any("modulation" in name or "embed" in name for name in adapted)


@pytest.mark.parametrize("facts", [KLEIN_4B, KLEIN_9B])
def test_its_sizes_are_those_of_the_real_classes(facts):
    sizes = facts.sizes
    with torch.device("meta"):
        transformer = Flux2Transformer2DModel(
            num_layers=sizes.double_blocks,
            num_single_layers=sizes.single_blocks,
            num_attention_heads=sizes.dim // 128,
            joint_attention_dim=sizes.caption_features,
            guidance_embeds=False,
        )
    assert sum(parameter.numel() for parameter in transformer.parameters()) == sizes.parameters
    adapted = [
        module for name, module in transformer.named_modules() if re.fullmatch(Klein.lora_targets, name)
    ]
    assert sum(module.weight.numel() for module in adapted) == sizes.linear_parameters
    both = sum(module.in_features + module.out_features for module in adapted)
    assert sizes.lora_parameters(32) == 32 * both


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_it_draws_by_its_pipeline_in_bfloat16_too(config, quantization):
    config = replace(config, precision="bfloat16")
    klein = load_base_model(config, MemoryPlan(quantization=quantization))
    klein.load_encoders()
    klein.load_transformer()
    conditioning = klein.encode(NO_PICTURES, "a dog", "student")
    pipeline = klein.make_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    picture = klein.draw(pipeline, conditioning, height=64, width=96, num_inference_steps=4)
    assert picture.size == (96, 64)
