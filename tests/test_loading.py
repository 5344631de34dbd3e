"""Frozen parts, read tensor by tensor: the same as the libraries' own loading makes of tiny real ones."""

import json
import re
import weakref

import pytest
import torch
from bitsandbytes.functional import quantize_4bit
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3Model
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from dopsd_app.models import frozen
from dopsd_app.models.catalog import BaseModelError
from dopsd_app.models.frozen import load_frozen
from dopsd_app.models.quantize import quantize_layer
from dopsd_app.models.z_image import ZImage

CPU = torch.device("cpu")


@pytest.fixture
def part(z_image_folder, tmp_path):
    """Copies one part's configuration and weights; gives its folder and its weights, to be changed."""

    def copy(name):
        folder = tmp_path / "base" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text((z_image_folder / name / "config.json").read_text())
        return folder, load_file(next((z_image_folder / name).glob("*.safetensors")))

    return copy


def save(folder, weights, shards=1, name="model"):
    """Weights in one file, or in shards with their index."""
    if shards == 1:
        save_file(weights, folder / f"{name}.safetensors")
        return
    index = {}
    for shard in range(shards):
        file = f"{name}-{shard + 1:05}-of-{shards:05}.safetensors"
        names = sorted(weights)[shard::shards]
        save_file({key: weights[key] for key in names}, folder / file)
        index |= dict.fromkeys(names, file)
    (folder / f"{name}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def load_transformer(folder, dtype=torch.float32, **settings):
    config = ZImageTransformer2DModel.load_config(folder)
    return load_frozen(lambda: ZImageTransformer2DModel.from_config(config), folder, dtype, CPU, **settings)


def load_autoencoder(folder, dtype=torch.float32):
    return load_frozen(
        lambda: AutoencoderKL.from_config(AutoencoderKL.load_config(folder)), folder, dtype, CPU
    )


def load_text_encoder(folder, dtype=torch.float32):
    config = Qwen3Config.from_pretrained(folder)
    return load_frozen(lambda: Qwen3Model(config), folder, dtype, CPU, prefix="model.")


def load_vision_tower(folder, dtype=torch.float32):
    config = Qwen3VLVisionConfig.from_pretrained(folder)
    return load_frozen(lambda: Qwen3VLVisionModel(config), folder, dtype, CPU, prefix="model.visual.")


def run_transformer(transformer):
    generator = torch.Generator().manual_seed(0)
    dtype = transformer.x_pad_token.dtype
    latents = [torch.randn(4, 1, 4, 4, generator=generator).to(dtype)]
    texts = [torch.randn(5, 32, generator=generator).to(dtype)]
    return transformer(latents, torch.tensor([0.3]), texts, return_dict=False)[0][0]


def run_autoencoder(vae):
    picture = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(vae.dtype)
    return vae(picture).sample


def run_text_encoder(text_encoder):
    return text_encoder(input_ids=torch.arange(20)[None]).last_hidden_state


def run_vision_tower(vision_tower):
    patches = torch.randn(16, 3 * 2 * 16 * 16, generator=torch.Generator().manual_seed(0))
    return vision_tower(patches.to(vision_tower.dtype), torch.tensor([[1, 4, 4]])).pooler_output


PARTS = {
    "transformer": (ZImageTransformer2DModel, load_transformer, run_transformer),
    "vae": (AutoencoderKL, load_autoencoder, run_autoencoder),
    "text_encoder": (Qwen3Model, load_text_encoder, run_text_encoder),
    "vision_tower": (Qwen3VLVisionModel, load_vision_tower, run_vision_tower),
}


def assert_same(loaded, expected, run):
    for tensors in ("named_parameters", "named_buffers"):
        ours, theirs = dict(getattr(loaded, tensors)()), dict(getattr(expected, tensors)())
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert ours[name].dtype == tensor.dtype and ours[name].equal(tensor), name
    for weight in expected.parameters():
        # from_pretrained leaves them in the file, where they lie at odd addresses: matrix products are then
        # rounded otherwise.
        weight.data = weight.data.clone()
    with torch.no_grad():
        assert run(loaded).equal(run(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("name", PARTS)
def test_a_part_is_what_from_pretrained_makes_of_it(part, name, shards, dtype):
    model_class, load, run = PARTS[name]
    folder, weights = part(name)
    library = "diffusion_pytorch_model" if name in ("transformer", "vae") else "model"
    save(folder, weights, shards, library)
    expected = model_class.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    loaded = load(folder, dtype)
    assert_same(loaded, expected, run)
    assert not loaded.training and not any(weight.requires_grad for weight in loaded.parameters())


@pytest.mark.parametrize("shards", [1, 3])
def test_a_text_encoder_stored_as_the_base_of_a_language_model_is_the_same(part, z_image_folder, shards):
    folder, weights = part("text_encoder")
    save(folder, {f"model.{name}": weight for name, weight in weights.items()}, shards)
    expected = Qwen3Model.from_pretrained(z_image_folder / "text_encoder", dtype=torch.float32)
    assert_same(load_text_encoder(folder), expected, run_text_encoder)
    assert_same(Qwen3Model.from_pretrained(folder, dtype=torch.float32), expected, run_text_encoder)


def test_a_vision_tower_is_taken_out_of_a_whole_qwen3_vl_of_which_only_its_shards_are_there(
    part, z_image_folder
):
    folder, weights = part("vision_tower")
    config = {"model_type": "qwen3_vl", "vision_config": json.loads((folder / "config.json").read_text())}
    (folder / "config.json").write_text(json.dumps(config))
    weights = {f"model.visual.{name}": weight for name, weight in weights.items()}
    save_file({**weights, "model.language_model.norm.weight": torch.ones(1)}, folder / "a.safetensors")
    files = {**dict.fromkeys(weights, "a.safetensors"), "lm_head.weight": "never-fetched.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    expected = Qwen3VLVisionModel.from_pretrained(z_image_folder / "vision_tower", dtype=torch.float32)
    assert_same(load_vision_tower(folder), expected, run_vision_tower)


def test_a_layer_leaves_when_its_quantized_one_has_taken_its_place(z_image_folder, monkeypatch):
    """On a card, those of the whole model would not fit."""
    replaced, alive = [], []

    def quantized(linear, quantization):
        alive.append(sum(layer() is not None for layer in replaced))
        replaced.append(weakref.ref(linear))
        return quantize_layer(linear, quantization)

    monkeypatch.setattr(frozen, "quantize_layer", quantized)
    load_transformer(z_image_folder / "transformer", quantization="int8", targets=ZImage.lora_targets)
    assert len(alive) == 28 and max(alive) <= 1


def test_nf4_layers_are_those_of_the_weights_in_the_dtype_of_the_rest(part):
    folder, weights = part("transformer")
    save(folder, weights, 3, "diffusion_pytorch_model")
    plain = load_transformer(folder, torch.bfloat16)
    loaded = load_transformer(folder, torch.bfloat16, quantization="nf4", targets=ZImage.lora_targets)
    targets = [name for name, _ in plain.named_modules() if re.fullmatch(ZImage.lora_targets, name)]
    assert len(targets) == 7 * 4  # two layers and two refiners
    for name in targets:
        weight = loaded.get_submodule(name).weight
        packed, state = quantize_4bit(
            weights[f"{name}.weight"].bfloat16(), compress_statistics=True, quant_type="nf4"
        )
        ours = weight.quant_state.as_dict(packed=True)
        assert weight.equal(packed) and not weight.requires_grad
        assert all(tensor.equal(ours[key]) for key, tensor in state.as_dict(packed=True).items())
    others = {name: weight for name, weight in plain.named_parameters() if name[:-7] not in targets}
    assert len(others) == len(weights) - len(targets)
    assert all(loaded.get_parameter(name).equal(weight) for name, weight in others.items())


def test_a_pass_through_nf4_layers_leaves_them_as_they_were_and_able_to_train(part):
    folder, weights = part("transformer")
    save(folder, weights)
    transformer = load_transformer(folder, torch.bfloat16, quantization="nf4", targets=ZImage.lora_targets)
    layer = transformer.layers[0].attention.to_q
    packed = layer.weight.clone()
    with torch.no_grad():
        run_transformer(transformer)
    assert layer.weight.equal(packed)
    assert not transformer.training and not layer.training


def test_a_bias_stays_beside_an_nf4_weight(part):
    folder, weights = part("vision_tower")
    save(folder, weights)
    config = Qwen3VLVisionConfig.from_pretrained(folder)
    loaded = load_frozen(
        lambda: Qwen3VLVisionModel(config),
        folder,
        torch.bfloat16,
        CPU,
        quantization="nf4",
        targets=r".*\.linear_fc1",
    )
    layer = loaded.merger.linear_fc1
    assert layer.weight.dtype == torch.uint8
    assert layer.bias.equal(weights["merger.linear_fc1.bias"].bfloat16())


def test_frequencies_that_lie_in_no_file_are_on_the_device_too(part):
    folder, weights = part("text_encoder")
    save(folder, weights)
    meta = torch.device("meta")  # a device like another, where there is no card
    config = Qwen3Config.from_pretrained(folder)
    loaded = load_frozen(lambda: Qwen3Model(config), folder, torch.bfloat16, meta)
    assert {tensor.device for tensor in (*loaded.parameters(), *loaded.buffers())} == {meta}
    assert {buffer.dtype for buffer in loaded.buffers()} == {torch.float32}  # bfloat16 would turn them


def test_stored_statistics_are_cast_and_their_counts_are_not(tmp_path):
    weights = torch.nn.BatchNorm1d(3).state_dict() | {"num_batches_tracked": torch.tensor(7)}
    save(tmp_path, weights)
    loaded = load_frozen(lambda: torch.nn.BatchNorm1d(3), tmp_path, torch.bfloat16, CPU)
    assert (loaded.running_var.dtype, loaded.num_batches_tracked) == (torch.bfloat16, 7)


def test_weights_stay_when_the_file_is_written_anew(part):
    folder, weights = part("text_encoder")
    save(folder, weights)
    loaded = load_text_encoder(folder)
    file = folder / "model.safetensors"
    with file.open("r+b") as opened:
        opened.write(bytes(file.stat().st_size))
    assert all(loaded.get_parameter(name).equal(weight) for name, weight in weights.items())


def test_variants_and_pickles_are_no_weights(part):
    folder, weights = part("text_encoder")
    save(folder, weights, name="model.fp16")
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(BaseModelError, match="base/text_encoder is incomplete, it holds no weights"):
        load_text_encoder(folder)


def test_weights_that_do_not_fit_are_told_before_any_is_read(part, monkeypatch):
    folder, weights = part("transformer")
    del weights["x_pad_token"]
    weights["cap_pad_token"] = torch.zeros(1, 31)
    weights |= {f"extra.{index}": torch.zeros(1) for index in range(7)}
    save(folder, weights, 2, "diffusion_pytorch_model")
    monkeypatch.setattr("dopsd_app.models.frozen.read_tensor", None)
    with pytest.raises(BaseModelError) as error:
        load_transformer(folder)
    assert str(error.value) == (
        "base/transformer lacks weights: x_pad_token. It has unknown weights: extra.0, extra.1, extra.2,"
        " extra.3, extra.4 and 2 more. It has weights of other shapes: cap_pad_token (1 x 31, not 1 x 32)."
        " Fetch it again, or take another."
    )


@pytest.mark.parametrize(("dtype", "kind"), [(torch.float8_e4m3fn, "F8_E4M3"), (torch.int8, "I8")])
def test_numbers_that_need_a_scale_are_refused(part, dtype, kind):
    folder, weights = part("text_encoder")
    save(folder, weights | {"norm.weight": weights["norm.weight"].to(dtype)})
    message = rf"numbers of other kinds, where float32, .* are read: norm\.weight \({kind}\)\."
    with pytest.raises(BaseModelError, match=message):
        load_text_encoder(folder)


def test_a_shard_that_was_cut_off_or_is_missing_is_named(part):
    folder, weights = part("transformer")
    save(folder, weights, 3, "diffusion_pytorch_model")
    shard = folder / "diffusion_pytorch_model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(BaseModelError, match=rf"base/transformer/{shard.name} is damaged: fetch it again"):
        load_transformer(folder)
    shard.unlink()
    with pytest.raises(BaseModelError, match=rf"base/transformer is incomplete: it lacks {shard.name}"):
        load_transformer(folder)


@pytest.mark.parametrize("text", ['{"weight_map": ', "{}", "[]"])
def test_a_damaged_index_is_told(part, text):
    folder, _ = part("text_encoder")
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(BaseModelError, match=r"text_encoder/model\.safetensors\.index\.json is damaged"):
        load_text_encoder(folder)
