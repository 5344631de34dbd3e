import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel

from dopsd_app.catalog import CATALOG, BaseModelError, download_size, find_base_model, find_facts, kind_of
from dopsd_app.sizes import Z_IMAGE_TURBO, read_sizes

GIB = 1024**3


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_built_in_base_is_ready_and_needs_no_card():
    facts = CATALOG["pocket-turbo"]
    assert (facts.repository, facts.gpu_memory) == ("", 0)
    assert find_base_model("pocket-turbo") == facts.folder


def test_every_base_model_says_its_licence():
    for facts in CATALOG.values():
        assert facts.licence
        assert facts.licence_name
        assert facts.licence_link.startswith("https://")


def test_z_image_turbo_is_told_of_before_it_is_there():
    facts = CATALOG["z-image-turbo"]
    assert facts.repository == "Tongyi-MAI/Z-Image-Turbo"
    assert 8 * GIB < facts.gpu_memory < 12 * GIB  # its text encoder alone takes 8 GB
    if not facts.folder.exists():
        with pytest.raises(BaseModelError, match=r"not on this computer.*path of its diffusers folder"):
            find_base_model("z-image-turbo")


def test_the_sizes_of_z_image_turbo_are_those_of_its_classes():
    with torch.device("meta"):
        transformer = ZImageTransformer2DModel()
    assert parameters(transformer) == Z_IMAGE_TURBO.parameters
    linear = [
        module.weight.numel()
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and ("attention.to" in name or "feed_forward" in name)
    ]
    assert len(linear) == 238
    assert sum(linear) == Z_IMAGE_TURBO.linear_parameters
    assert Z_IMAGE_TURBO.lora_parameters(64) == 158_760_960  # 238 modules: 34 x 64 x 19 x 3840


def test_a_folder_of_a_known_size_is_of_that_kind(real_size_folder, z_image_folder, tmp_path):
    assert kind_of(str(real_size_folder)) == "z-image-turbo"
    assert kind_of("pocket-turbo") == "pocket-turbo"
    for other in (str(z_image_folder), str(tmp_path / "nothing")):
        assert kind_of(other) == other


def test_sizes_of_a_folder_are_read_from_its_files():
    folder = CATALOG["pocket-turbo"].folder
    sizes = read_sizes(folder)
    transformer = ZImageTransformer2DModel.from_pretrained(folder / "transformer")
    assert sizes.parameters == parameters(transformer)
    assert sizes.decoder_parameters == parameters(AutoencoderKL.from_pretrained(folder / "vae"))
    assert (sizes.dim, sizes.layers, sizes.refiners, sizes.token_side) == (192, 6, 1, 8)
    assert (sizes.context_side, sizes.context_area) == (16, (64 * 64, 64 * 64))


def test_a_folder_of_ones_own_is_known_by_its_files(z_image_folder):
    facts = find_facts(str(z_image_folder))
    assert (facts.label, facts.licence, facts.resolutions) == (z_image_folder.name, "", None)
    assert facts.sizes.dim == 32


def test_a_damaged_folder_is_refused_in_a_sentence(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(CATALOG["pocket-turbo"].folder, folder)
    (folder / "transformer" / "config.json").write_text("{}")
    with pytest.raises(BaseModelError, match="is damaged"):
        find_facts(str(folder))
    shutil.rmtree(folder / "vae")
    with pytest.raises(BaseModelError, match="incomplete: it lacks vae"):
        find_facts(str(folder))


class Hub(BaseHTTPRequestHandler):
    def do_GET(self):
        files = {
            "transformer/a.safetensors": 700,
            "tokenizer/merges.txt": 40,
            "README.md": 5,
            "assets/x.png": 9,
        }
        siblings = [{"rfilename": name, "size": size} for name, size in files.items()]
        known = self.path.startswith("/api/models/some/model") and "blobs=true" in self.path
        body = json.dumps({"id": "some/model", "siblings": siblings} if known else {"error": "no"}).encode()
        self.send_response(200 if known else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_the_hub_is_asked_for_the_size_of_what_is_needed():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = (
        "from dopsd_app.catalog import download_size;"
        " print(download_size('some/model'), download_size('other/model'))"
    )
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        answer = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"},
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        server.shutdown()
        server.server_close()
    assert answer.stdout.split() == ["740", "None"]


def test_offline_the_size_is_not_known():
    assert download_size("some/model") is None  # HF_HUB_OFFLINE is set for the tests
