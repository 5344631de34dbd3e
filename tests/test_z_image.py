"""Z-Image, proved against the official pipeline on tiny random weights in float32."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dopsd_app.method.adapters import add_adapters, as_base
from dopsd_app.method.rollout import rollout, sample
from dopsd_app.models.catalog import BaseModelError
from dopsd_app.models.load import load_base_model
from dopsd_app.models.protocol import NO_PICTURES, Pictures
from tests.support.pictures import make_picture


def pipeline_latents(base_model, caption, noise, steps, size=32):
    """Latents after every step of the official pipeline."""
    visited = []

    def keep(pipeline, index, timestep, values):
        visited.append(values["latents"].clone())
        return {}

    pipeline = base_model.make_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    pipeline(
        prompt=caption,
        height=size,
        width=size,
        num_inference_steps=steps,
        guidance_scale=0.0,
        latents=noise.clone(),
        output_type="latent",
        callback_on_step_end=keep,
    )
    return visited


@pytest.mark.parametrize("steps", [4, 8])
def test_rollout_of_the_base_visits_the_states_of_the_pipeline(tiny_z_image, tiny_config, steps):
    expected_noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    expected = pipeline_latents(tiny_z_image, "a dog", expected_noise, steps)
    add_adapters(tiny_z_image.transformer, tiny_z_image.lora_targets, tiny_config)
    student = [tiny_z_image.encode(NO_PICTURES, "a dog", "student")]
    sigmas = tiny_z_image.sigmas(steps, 32, 32)
    with as_base(tiny_z_image.transformer):
        states = [step.latents for step in rollout(tiny_z_image, student, student, expected_noise, sigmas)]
        states.append(sample(tiny_z_image, student, expected_noise, sigmas))
    assert len(expected) == steps
    for state, latents in zip(states[1:], expected, strict=True):
        torch.testing.assert_close(state, latents, atol=1e-5, rtol=0)


def test_sigmas_are_the_shifted_grid_and_four_steps_are_every_second_of_eight(tiny_z_image):
    four, eight = tiny_z_image.sigmas(4, 32, 32), tiny_z_image.sigmas(8, 32, 32)
    by_hand = [3 * s / (1 + 2 * s) for s in (1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0)]
    torch.testing.assert_close(eight, torch.tensor(by_hand))
    torch.testing.assert_close(four, torch.tensor([1, 0.9, 0.75, 0.5, 0]))
    torch.testing.assert_close(four, eight[::2])


@pytest.mark.parametrize("steps", [4, 8])
def test_sigmas_equal_those_the_pipeline_leaves_in_its_scheduler(tiny_z_image, steps):
    pipeline_latents(tiny_z_image, "a dog", torch.zeros(1, 4, 4, 4), steps)
    torch.testing.assert_close(tiny_z_image.sigmas(steps, 32, 32), tiny_z_image.scheduler.sigmas)


def test_student_features_equal_encode_prompt(tiny_z_image):
    pipeline = tiny_z_image.make_pipeline()
    for caption in ("a dog", "a longer caption, with [V] and ümlauts", ""):
        expected, _ = pipeline.encode_prompt([caption], do_classifier_free_guidance=False)
        features = tiny_z_image.encode(NO_PICTURES, caption, "student").prompt_embeds
        torch.testing.assert_close(features, expected[0], atol=1e-5, rtol=1e-5)


def test_a_long_caption_is_cut_where_the_pipeline_cuts_it(tiny_z_image):
    caption = "word " * 200
    expected, _ = tiny_z_image.make_pipeline().encode_prompt([caption], do_classifier_free_guidance=False)
    features = tiny_z_image.encode(NO_PICTURES, caption, "student").prompt_embeds
    assert len(features) == 512
    torch.testing.assert_close(features, expected[0], atol=1e-5, rtol=1e-5)


def test_the_pipeline_changes_the_list_it_is_given_so_that_it_never_gets_one_of_ours(tiny_z_image):
    captions = ["a dog"]
    tiny_z_image.make_pipeline().encode_prompt(captions, do_classifier_free_guidance=False)
    assert captions != [
        "a dog"
    ]  # once this fails, diffusers is mended, and so may be the comment in _token_ids


def test_teacher_without_a_picture_sees_exactly_what_the_student_sees(tiny_z_image):
    token_ids = tiny_z_image._token_ids("a dog")
    features = tiny_z_image.teacher_encoder(input_ids=token_ids, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(
        features[0], tiny_z_image.encode(NO_PICTURES, "a dog", "student").prompt_embeds
    )


@pytest.fixture
def own_bounds(tiny_config):
    """The tiny model whose teacher sees pictures as large as Z-Image's own."""
    base_model = load_base_model(replace(tiny_config, teacher_picture_minimum=0, teacher_picture_maximum=0))
    base_model.load_encoders()
    return base_model


@pytest.mark.parametrize(
    ("size", "tokens"),
    [((512, 512), 256), ((640, 512), 320), ((768, 768), 576), ((1024, 1024), 576), ((32, 32), 256)],
)
def test_teacher_sees_one_token_per_merged_patch_and_the_caption(own_bounds, size, tokens):
    # A token is 32 x 32 pixels, of an area within 512**2 .. 768**2, whatever the folder's own bounds are.
    student = own_bounds.encode(NO_PICTURES, "a dog", "student").prompt_embeds
    teacher = own_bounds.encode(Pictures(make_picture(0, *size)), "a dog", "teacher").prompt_embeds
    assert len(teacher) == len(student) + tokens + 2  # + <|vision_start|> and <|vision_end|>
    assert not torch.allclose(teacher[-1], student[-1], atol=1e-4)


def test_the_size_of_the_teachers_picture_can_be_chosen(tiny_config, tiny_z_image):
    picture = Pictures(make_picture(0, 512, 512))
    student = tiny_z_image.encode(NO_PICTURES, "a dog", "student").prompt_embeds
    teacher = tiny_z_image.encode(picture, "a dog", "teacher").prompt_embeds
    assert len(teacher) == len(student) + 2 * 2 + 2  # 64 x 64 pixels, as `tiny_config` says
    large = load_base_model(replace(tiny_config, teacher_picture_maximum=1024, teacher_picture_minimum=1024))
    large.load_encoders()
    # More than the 1,024 tokens of the released code, and the caption is whole all the same.
    assert len(large.encode(picture, "a dog", "teacher").prompt_embeds) == len(student) + 1024 + 2
    assert large.conditioning_version != tiny_z_image.conditioning_version  # no cache holds one for the other
    for bounds in ({"teacher_picture_maximum": 16}, {"teacher_picture_minimum": 1025}):
        config = replace(
            tiny_config, **({"teacher_picture_minimum": 0, "teacher_picture_maximum": 0} | bounds)
        )
        with pytest.raises(BaseModelError, match="must be in this order and between 32 and 1024"):
            load_base_model(config)


def test_teacher_depends_on_the_picture(tiny_z_image):
    first = tiny_z_image.encode(Pictures(make_picture(0)), "a dog", "teacher").prompt_embeds
    second = tiny_z_image.encode(Pictures(make_picture(1)), "a dog", "teacher").prompt_embeds
    assert not torch.allclose(first[-1], second[-1], atol=1e-4)


def test_teacher_message_is_picture_then_caption_templated_once(own_bounds, monkeypatch):
    seen = []
    tokenizer = own_bounds.tokenizer
    monkeypatch.setattr(
        type(tokenizer),
        "__call__",
        lambda self, text, **kw: seen.append(text) or self._encode_plus(text, **kw),
    )
    own_bounds.encode(Pictures(make_picture(0)), "a dog", "teacher")
    assert seen == [
        "<|im_start|>user\n<|vision_start|>" + "<|image_pad|>" * 256 + "<|vision_end|>a dog<|im_end|>\n"
        "<|im_start|>assistant\n",
        "<|im_start|>user\na dog<|im_end|>\n<|im_start|>assistant\n",  # to see how long the caption is
    ]


@pytest.mark.parametrize(("side", "letters"), [(32, 493), (1024, 427)])
def test_a_caption_that_would_be_cut_off_is_refused_before_training(own_bounds, side, letters):
    # A letter is a token. The student reads 512, of which the template takes 19; the teacher 1024, of which
    # picture and template take 256 + 2 + 19 or 576 + 2 + 19.
    picture = make_picture(0, side, side)
    own_bounds.encode(Pictures(picture), "x" * letters, "teacher")
    with pytest.raises(
        BaseModelError, match=r"“xxx.* is too long: it takes .* and .* can be read. Shorten it."
    ):
        own_bounds.encode(Pictures(picture), "x" * (letters + 1), "teacher")


def test_missing_or_unexpected_vision_weights_are_named(z_image_folder, tiny_config, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(z_image_folder, folder)
    file = folder / "vision_tower" / "model.safetensors"
    weights = load_file(file)
    save_file({f"visual.{name}" if "merger" in name else name: w for name, w in weights.items()}, file)
    base_model = load_base_model(tiny_config.__class__(base_model=str(folder)))
    with pytest.raises(BaseModelError, match=r"lacks weights: deepstack_merger_list\.0\.linear_fc1\.bias"):
        base_model.load_encoders()
    save_file({**weights, "visual.extra": torch.zeros(1)}, file)
    with pytest.raises(BaseModelError, match=r"unknown weights: visual\.extra"):
        base_model.load_encoders()


def test_a_batch_of_captions_of_different_lengths_equals_one_by_one(tiny_z_image):
    captions = ["a dog", "a very much longer caption about a dog that goes on and on"]
    conditionings = [tiny_z_image.encode(NO_PICTURES, caption, "student") for caption in captions]
    assert {-(-len(c.prompt_embeds) // 32) for c in conditionings} == {
        1,
        3,
    }  # padded to different multiples of 32
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor(0.75)
    with torch.no_grad():
        together = tiny_z_image.predict_velocity(latents, sigma, conditionings)
        alone = [
            tiny_z_image.predict_velocity(latents[i : i + 1], sigma, conditionings[i : i + 1])
            for i in range(2)
        ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_pictures_go_to_latents_and_back_in_the_pipelines_scale(tiny_z_image):
    latents = tiny_z_image.encode_picture(make_picture(0, 64, 32))
    assert latents.shape == tiny_z_image.latent_shape(32, 64) == (4, 4, 8)
    raw = tiny_z_image.vae.encode(torch.full((1, 3, 32, 32), 2 * 51 / 255 - 1)).latent_dist.mode()[0]
    grey = tiny_z_image.encode_picture(Image.new("RGB", (32, 32), (51, 51, 51)))
    # shift_factor 0.1, scaling_factor 0.5; the autoencoder makes 1e-5 of a rounding in the pixels
    torch.testing.assert_close(grey, (raw - 0.1) * 0.5, atol=1e-4, rtol=0)
    assert tiny_z_image.decode(latents[None])[0].size == (64, 32)


def test_a_folder_that_is_no_base_model_is_refused(tmp_path, tiny_config):
    with pytest.raises(BaseModelError, match="no base model"):
        load_base_model(tiny_config.__class__(base_model=str(tmp_path)))
    index = tmp_path / "model_index.json"
    index.write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(BaseModelError, match="is a StableDiffusionPipeline"):
        load_base_model(tiny_config.__class__(base_model=str(tmp_path)))
    index.write_text('{"_class_name": ')
    with pytest.raises(BaseModelError, match="is damaged"):
        load_base_model(tiny_config.__class__(base_model=str(tmp_path)))
    index.write_text('{"_class_name": "ZImagePipeline", "vae": ["diffusers", "AutoencoderKL"]}')
    with pytest.raises(BaseModelError, match="has no transformer, text_encoder"):
        load_base_model(tiny_config.__class__(base_model=str(tmp_path)))
    parts = {part: ["library", "class"] for part in ("transformer", "text_encoder", "vae")}
    index.write_text(json.dumps({"_class_name": "ZImagePipeline", **parts}))
    with pytest.raises(BaseModelError, match="is incomplete: it lacks transformer, text_encoder, vae"):
        load_base_model(tiny_config.__class__(base_model=str(tmp_path)))


def test_a_card_that_is_not_there_is_told(tiny_config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BaseModelError, match="finds no CUDA card"):
        load_base_model(replace(tiny_config, device="cuda"))
