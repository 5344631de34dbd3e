"""The autoencoder where memory is short: it waits in the computer's memory, and decodes in tiles."""

import numpy as np
import pytest
import torch

from dopsd_app.config import TrainConfig
from dopsd_app.models.load import load_base_model
from dopsd_app.models.memory_plan import MemoryPlan
from tests.support.pictures import make_picture
from tests.support.tiny_models import save_klein, save_z_image


@pytest.fixture(scope="module", params=[save_z_image, save_klein], ids=["z-image", "klein"])
def config(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    request.param(folder)
    return TrainConfig(base_model=str(folder), device="cpu", precision="float32")


def loaded_with(config, **plan):
    base_model = load_base_model(config, MemoryPlan(**plan))
    base_model.load_autoencoder()
    return base_model


def noise_of(base_model, height, width):
    shape = base_model.latent_shape(height, width)
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))


def pixels(base_model, latents):
    return np.asarray(base_model.decode(latents)[0]).astype(int)


def test_pictures_of_one_tile_are_decoded_bit_by_bit_as_without(config):
    plain, tiled = loaded_with(config), loaded_with(config, tiled_decode=True)
    latents = noise_of(plain, 384, 288)
    assert (pixels(tiled, latents) == pixels(plain, latents)).all()


def test_a_larger_picture_is_decoded_in_tiles_to_nearly_the_same(config):
    """Of noise, the worst there is: each tile has statistics of its own."""
    plain, tiled = loaded_with(config), loaded_with(config, tiled_decode=True)
    latents = noise_of(plain, 512, 640)
    whole = pixels(plain, latents)
    decoded = []
    tiled.vae.decoder.register_forward_hook(lambda _, given, made: decoded.append(made.shape[-2:]))
    wrong = abs(pixels(tiled, latents) - whole)
    # Tiles of 384 pixels begin at each 288: of 512 rows the second has 224, of 640 columns the third has 64.
    assert decoded == [(rows, columns) for rows in (384, 224) for columns in (384, 352, 64)]
    assert 0 < wrong.mean() < 3.5  # of 256; 3.1 at the most, where the picture deviates by 31 and 44


def test_pictures_are_encoded_whole(config):
    plain, tiled = loaded_with(config), loaded_with(config, tiled_decode=True)
    picture = make_picture(0, 640, 512)
    assert tiled.encode_picture(picture).equal(plain.encode_picture(picture))


def test_an_autoencoder_that_waits_gives_the_same_and_is_moved_for_each_picture(config):
    plain, waiting = loaded_with(config), loaded_with(config, autoencoder_in_ram=True)
    picture = make_picture(0, 64, 96)
    latents = waiting.encode_picture(picture)
    assert latents.equal(plain.encode_picture(picture))
    assert (pixels(waiting, latents[None]) == pixels(plain, latents[None])).all()


def test_an_autoencoder_that_waits_is_on_the_device_as_long_as_it_is_used(config):
    waiting = loaded_with(config, autoencoder_in_ram=True)
    assert waiting.vae.device == torch.device("cpu")
    waiting.device = torch.device("meta")  # a device like another, where there is no card
    with waiting._autoencoder() as vae:
        assert {tensor.device for tensor in (*vae.parameters(), *vae.buffers())} == {waiting.device}
        vae.to_empty(device="cpu")  # what is on "meta" cannot be moved back
        moved, vae.to = [], lambda device: moved.append(device)
    assert moved == [torch.device("cpu")]
