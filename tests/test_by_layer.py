"""A text encoder that is read layer by layer: exactly the same features, and one layer in memory."""

from dataclasses import replace

import pytest
import torch

from dopsd_app.config import TrainConfig
from dopsd_app.models.architecture import BY_EYES, BaseModelError
from dopsd_app.models.load import load_base_model
from dopsd_app.models.memory_plan import MemoryPlan
from dopsd_app.models.protocol import NO_PICTURES, Pictures
from tests.support.pictures import make_picture
from tests.support.tiny_models import save_klein, save_z_image


@pytest.fixture(scope="module", params=[save_z_image, save_klein], ids=["z-image", "klein"])
def config(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    request.param(folder)
    seeing = {"teacher_picture_minimum": 64, "teacher_picture_maximum": 64, "teacher_context": BY_EYES}
    return TrainConfig(base_model=str(folder), device="cpu", precision="float32", **seeing)


def encoders_of(config, **plan):
    base_model = load_base_model(config, MemoryPlan(**plan))
    base_model.load_encoders()
    return base_model


def bytes_of(tensors):
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_features_are_exactly_those_of_the_encoder_that_lies_in_memory(config, precision):
    config = replace(config, precision=precision)
    whole, by_layer = encoders_of(config), encoders_of(config, encoders_by_layer=True)
    picture = Pictures(make_picture(0, 64, 64))
    for caption in ("a dog", "another caption"):
        for role, pictures in (("student", NO_PICTURES), ("teacher", picture)):
            features = [base_model.encode(pictures, caption, role) for base_model in (whole, by_layer)]
            assert features[0].prompt_embeds.equal(features[1].prompt_embeds)
            assert features[1].prompt_embeds.isfinite().all()
    assert by_layer.official_features("a dog").equal(whole.official_features("a dog"))
    assert by_layer.teacher_text_features("a dog").equal(whole.teacher_text_features("a dog"))


def test_one_layer_is_in_memory_at_a_time_and_none_between_two_captions(config):
    base_model = encoders_of(config, encoders_by_layer=True)
    student, teacher = base_model.text_encoder, base_model.teacher_encoder.language_model
    large = [weight for model in (student, teacher) for weight in model.layers.parameters()]
    numbers = sum(weight.numel() for weight in student.layers[0].parameters())
    seen = []
    for layer in (*student.layers, *teacher.layers):
        layer.register_forward_pre_hook(lambda *_: seen.append(bytes_of(large)))
    base_model.encode(NO_PICTURES, "a dog", "student")
    base_model.encode(Pictures(make_picture(0, 64, 64)), "a dog", "teacher")
    assert len(seen) == 2 * len(student.layers)
    # What stands for the others, of both models, is a number each.
    assert max(seen) < 4 * (numbers + len(large))
    assert bytes_of(large) <= 4 * len(large)
    assert bytes_of([student.embed_tokens.weight, teacher.embed_tokens.weight]) == 4


def test_a_layer_goes_where_its_pass_fails(config):
    base_model = encoders_of(config, encoders_by_layer=True)
    layer = base_model.text_encoder.layers[0]
    with pytest.raises(RuntimeError):
        layer(torch.zeros(1, 2, 3))
    assert bytes_of(layer.parameters()) == 4 * len(list(layer.parameters()))


def test_a_file_that_is_gone_is_told(config, tmp_path):
    base_model = encoders_of(config, encoders_by_layer=True)
    file = next((base_model.folder / "text_encoder").glob("*.safetensors"))
    kept = file.rename(tmp_path / "kept")
    try:
        with pytest.raises(BaseModelError, match=f"it lacks {file.name}"):
            base_model.encode(NO_PICTURES, "a dog", "student")
    finally:
        kept.rename(file)
