"""The imitation of the Hub towards the real client's downloads, and repositories in the real layout."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import httpx2
import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from safetensors import safe_open
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil, Qwen3Model, Qwen3VLForConditionalGeneration

from tests.support.imitation_hub import ImitationHub
from tests.support.real_layout import TRANSFORMER, save_qwen_vl_repository, save_z_image_repository

NAME = "Tongyi-MAI/Z-Image-Turbo"
SHARD = "transformer/diffusion_pytorch_model-00002-of-00003.safetensors"
TOKEN, OTHER = "hf_ann", "hf_bob"
# Runs what it is told line by line: the tests' own process is offline.
CLIENT = """
import json, sys
from types import SimpleNamespace
from huggingface_hub import HfApi, file_download, hf_hub_download, snapshot_download
from huggingface_hub.utils import disable_progress_bars, logging

disable_progress_bars()
logging.set_verbosity_error()
file_download.time = SimpleNamespace(sleep=lambda seconds: None)  # a second before it goes on after a cut
file_download.constants.DOWNLOAD_CHUNK_SIZE = 100_000  # what a cut leaves unfinished is fetched again
names = globals()
for line in sys.stdin:
    try:
        answer = {"result": eval(json.loads(line), names)}
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        answer = {"kind": type(error).__name__, "status": status, "words": str(error)}
    print(json.dumps(answer, default=vars), flush=True)
"""


class Client:
    """The real client, in a process of its own."""

    def __init__(self, hub, folder):
        ours = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT],
            env=ours | hub.environment(folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def answer(self, expression):
        self.process.stdin.write(json.dumps(expression) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def call(self, expression):
        answer = self.answer(expression)
        assert "result" in answer, answer
        return answer["result"]

    def refusal(self, expression):
        """Kind and status of what it raises."""
        answer = self.answer(expression)
        return answer["kind"], answer["status"]

    def close(self):
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def imitation():
    with ImitationHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def client(imitation, tmp_path_factory):
    client = Client(imitation, tmp_path_factory.mktemp("client"))
    yield client
    client.close()


@pytest.fixture(scope="module")
def z_image(tmp_path_factory):
    folder = tmp_path_factory.mktemp("z-image")
    save_z_image_repository(folder)
    return folder


@pytest.fixture(scope="module")
def fine_tune(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fine-tune")
    save_z_image_repository(folder, fine_tune=True)
    return folder


@pytest.fixture(scope="module")
def qwen_vl(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen-vl")
    save_qwen_vl_repository(folder)
    return folder


@pytest.fixture
def hub(imitation, z_image):
    imitation.reset()
    imitation.add_account(TOKEN, "Ann")
    imitation.add_account(OTHER, "Bob")
    imitation.add_model(NAME, z_image)
    return imitation


def files_of(folder):
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def git_name(content):
    """By which git calls a file."""
    return hashlib.sha1(f"blob {len(content)}".encode() + b"\0" + content).hexdigest()


def get(hub, path, asked="", **settings):
    headers = {"Range": asked} if asked else {}
    with httpx2.Client(follow_redirects=True, trust_env=False, **settings) as http:
        return http.get(f"{hub.url}/{NAME}/resolve/main/{path}", headers=headers)


def wait_until(true, seconds=5):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


# --- what the real client gets


def test_a_snapshot_has_the_same_bytes_as_links_into_the_cache(hub, client, z_image, tmp_path):
    folder = Path(client.call(f"snapshot_download({NAME!r}, token={TOKEN!r}, cache_dir={str(tmp_path)!r})"))
    content = files_of(z_image)
    assert files_of(folder) == content
    assert folder.name == hub.repositories[NAME].sha and len(folder.name) == 40
    for path, file in content.items():
        large = path.endswith((".safetensors", ".png", "tokenizer.json"))
        name = hashlib.sha256(file).hexdigest() if large else git_name(file)
        assert (folder / path).resolve() == tmp_path / folder.parents[1].name / "blobs" / name
        assert hub.fetched(f"^{NAME}/{path}$") == len(file)
    large = [request for request in hub.requests if request.path.startswith("/cdn/")]
    assert large and {request.token for request in large} == {""}
    assert {request.token for request in hub.asked("/resolve/")} == {TOKEN}


def test_the_models_facts_are_those_of_its_files(hub, client, z_image, fine_tune):
    info = client.call(f"HfApi().model_info({NAME!r}, files_metadata=True, token=False)")
    content = files_of(z_image)
    assert {file["rfilename"]: file["size"] for file in info["siblings"]} == {
        path: len(file) for path, file in content.items()
    }
    found = {file["rfilename"]: file for file in info["siblings"]}
    shard = content[SHARD]
    pointer = f"oid sha256:{hashlib.sha256(shard).hexdigest()}\nsize {len(shard)}\n"
    pointer = f"version https://git-lfs.github.com/spec/v1\n{pointer}".encode()
    lfs = {"size": len(shard), "sha256": hashlib.sha256(shard).hexdigest(), "pointer_size": len(pointer)}
    assert found[SHARD]["lfs"] == lfs and found[SHARD]["blob_id"] == git_name(pointer)
    assert found["model_index.json"]["blob_id"] == git_name(content["model_index.json"])
    assert found["model_index.json"]["lfs"] is None
    assert (info["private"], info["gated"]) == (False, False)
    assert info["card_data"]["license"] == "apache-2.0" and "license:apache-2.0" in info["tags"]

    hub.add_model("Bob/tune", fine_tune, gated=True)
    info = client.call("HfApi().model_info('Bob/tune', token=False)")
    assert info["gated"] == "auto" and info["siblings"][0]["size"] is None
    assert info["card_data"]["license_link"] == "https://example.org/licence"
    assert f"base_model:{NAME}" in info["tags"]


def test_the_tree_has_the_same_files_and_their_folders(hub, client, z_image):
    entries = client.call(f"[*HfApi().list_repo_tree({NAME!r}, recursive=True, token=False)]")
    content = files_of(z_image)
    files = {entry["path"]: entry for entry in entries if "size" in entry}
    assert {path: entry["size"] for path, entry in files.items()} == {p: len(f) for p, f in content.items()}
    assert files[SHARD]["lfs"]["sha256"] == hashlib.sha256(content[SHARD]).hexdigest()
    folders = {"assets", "scheduler", "text_encoder", "tokenizer", "transformer", "vae"}
    assert {entry["path"] for entry in entries if "size" not in entry} == folders
    top = client.call(f"[entry.path for entry in HfApi().list_repo_tree({NAME!r}, token=False)]")
    assert set(top) == folders | {".gitattributes", "README.md", "model_index.json"}


def test_an_older_commit_stays_where_it_was(hub, client, fine_tune, tmp_path):
    old = hub.repositories[NAME].sha
    new = hub.add_model(NAME, fine_tune)
    assert old != new

    def licence(revision):
        asked = f"hf_hub_download({NAME!r}, 'README.md', revision={revision!r}, cache_dir={str(tmp_path)!r})"
        return Path(client.call(asked)).read_text().partition("\n")[2].partition("\n")[0]

    assert [licence(revision) for revision in (old, new, "main")] == [
        "license: apache-2.0",
        "license: other",
        "license: other",
    ]
    assert client.call(f"HfApi().model_info({NAME!r}, revision={old!r}).sha") == old


def test_what_is_not_there_is_refused_as_by_the_real_one(hub, client, tmp_path):
    def refusal(name=NAME, path="model_index.json", **more):
        keywords = "".join(f", {key}={value!r}" for key, value in more.items())
        return client.refusal(f"hf_hub_download({name!r}, {path!r}, cache_dir={str(tmp_path)!r}{keywords})")

    assert refusal(path="nothing.json") == ("RemoteEntryNotFoundError", 404)
    assert refusal(revision="nothing") == ("RevisionNotFoundError", 404)
    assert refusal(revision="0" * 40) == ("RevisionNotFoundError", 404)
    assert refusal("Bob/nothing", token=False) == ("RepositoryNotFoundError", 401)
    assert refusal("Bob/nothing", token=TOKEN) == ("RepositoryNotFoundError", 404)
    assert client.refusal(f"HfApi().model_info({NAME!r}, revision='x')") == ("RevisionNotFoundError", 404)
    assert client.refusal("HfApi().model_info('Bob/nothing')") == ("RepositoryNotFoundError", 401)
    assert client.refusal(f"HfApi().model_info({NAME!r}, token='hf_x')") == ("HfHubHTTPError", 401)


def test_who_may_read_what(hub, client, z_image, tmp_path):
    hub.add_model("Bob/gated", z_image, gated=True)
    hub.add_model("Bob/private", z_image, private=True)

    def read(name, token):
        place = tmp_path / f"{name}-{token}"
        call = f"hf_hub_download({name!r}, 'model_index.json', token={token!r}, cache_dir={str(place)!r})"
        answer = client.answer(call)
        return answer.get("kind", "read"), answer.get("status")

    assert read("Bob/gated", False) == ("GatedRepoError", 401)
    assert read("Bob/gated", TOKEN) == ("GatedRepoError", 403)
    assert read("Bob/gated", OTHER) == ("read", None)
    assert client.refusal("snapshot_download('Bob/gated', token=False)") == ("GatedRepoError", 401)
    assert read("Bob/private", False) == ("RepositoryNotFoundError", 401)
    assert read("Bob/private", TOKEN) == ("RepositoryNotFoundError", 404)
    for name in ("Bob/gated", "Bob/private"):
        hub.grant(TOKEN, name)
        assert read(name, TOKEN) == ("read", None)


def test_the_weights_header_is_read_without_the_weights(hub, client, z_image):
    found = client.call(f"HfApi().parse_safetensors_file_metadata({NAME!r}, {SHARD!r}).tensors")
    with safe_open(z_image / SHARD, "pt") as file:
        assert found.keys() == set(file.keys())
    assert [(served.path, served.start, served.sent) for served in hub.served] == [(SHARD, 0, 100_001)]


# --- ranges


@pytest.mark.parametrize("path", [SHARD, "tokenizer/vocab.json"])
def test_parts_of_a_file(hub, z_image, path):
    content = (z_image / path).read_bytes()
    size = len(content)
    for asked, part in (
        ("bytes=5-8", slice(5, 9)),
        ("bytes=0-0", slice(0, 1)),
        ("bytes=1000-", slice(1000, size)),
        (f"bytes=7-{size + 99}", slice(7, size)),
        ("bytes=-3", slice(size - 3, size)),
    ):
        answer = get(hub, path, asked)
        assert (answer.status_code, answer.content) == (206, content[part])
        assert answer.headers["Content-Range"] == f"bytes {part.start}-{part.stop - 1}/{size}"
    too_far = get(hub, path, f"bytes={size}-")
    assert (too_far.status_code, too_far.headers["Content-Range"]) == (416, f"bytes */{size}")
    hub.ranges = False
    answer = get(hub, path, "bytes=5-8")
    assert (answer.status_code, answer.content) == (200, content)


# --- trouble


@pytest.mark.parametrize("ranges", [True, False])
def test_the_client_goes_on_after_a_cut(hub, client, z_image, tmp_path, ranges):
    content = (z_image / SHARD).read_bytes()
    hub.ranges = ranges
    hub.cut(SHARD, 300_000)
    path = client.call(f"hf_hub_download({NAME!r}, {SHARD!r}, cache_dir={str(tmp_path)!r})")
    assert Path(path).read_bytes() == content
    start = 300_000 if ranges else 0
    bodies = [(served.start, served.sent) for served in hub.served]
    assert bodies == [(0, 300_000), (start, len(content) - start)]


def test_only_bodies_that_reach_so_far_are_cut(hub):
    hub.cut("GET", 500)
    assert get(hub, "tokenizer/merges.txt").status_code == 200
    with pytest.raises(httpx2.RemoteProtocolError):
        get(hub, "tokenizer/vocab.json")
    assert get(hub, "tokenizer/vocab.json").status_code == 200
    hub.cut("GET", 500, times=9)
    hub.mend()
    assert get(hub, "tokenizer/vocab.json").status_code == 200


def test_a_stalled_body_says_nothing_until_the_client_goes(hub):
    before = threading.active_count()
    hub.stall(SHARD, 1000)
    with pytest.raises(httpx2.ReadTimeout):
        get(hub, SHARD, timeout=0.3)
    assert hub.fetched(SHARD) == 1000
    wait_until(lambda: threading.active_count() <= before)


def test_a_slow_body_comes_smoothly_at_about_the_speed_asked_for(hub, z_image):
    before = threading.active_count()
    hub.slow(SHARD, 200_000)
    started, moments, size = time.monotonic(), [], 0
    with httpx2.stream("GET", f"{hub.url}/{NAME}/resolve/main/{SHARD}", follow_redirects=True) as answer:
        for piece in answer.iter_raw():
            size += len(piece)
            moments.append(time.monotonic())
            if size >= 120_000:
                break
    assert 0.3 < moments[-1] - started < 3  # 0.6
    assert sum(later - earlier for earlier, later in pairwise(moments)) / len(moments) < 0.2  # 0.05
    # The client left in the middle: the Hub lets go, and has not sent the rest meanwhile.
    wait_until(lambda: threading.active_count() <= before)
    assert hub.fetched(SHARD) < 500_000
    hub.mend()
    assert get(hub, SHARD).content == (z_image / SHARD).read_bytes()


def test_the_hub_stops_in_the_middle_of_a_body_and_is_there_again(hub):
    hub.slow(SHARD, 1000)
    caught = []

    def read():
        with pytest.raises(httpx2.TransportError):
            get(hub, SHARD)
        caught.append(True)

    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: hub.fetched(SHARD) > 0)
    hub.stop()
    reader.join(5)
    hub.start()
    assert caught
    hub.mend()
    assert get(hub, "README.md").status_code == 200


def test_statuses_can_be_told_for_lists_and_files(hub, client):
    hub.fail(f"GET /api/models/{NAME}", 503)
    assert client.refusal(f"HfApi().model_info({NAME!r})") == ("HfHubHTTPError", 503)
    hub.fail("GET /cdn/.*vae/", 500)
    path = "vae/diffusion_pytorch_model.safetensors"
    assert get(hub, path).status_code == 500
    hub.fail("HEAD .*/resolve/", 403)
    asked = f"HfApi().get_hf_file_metadata(url='{hub.url}/{NAME}/resolve/main/{path}')"
    assert client.refusal(asked) == ("HfHubHTTPError", 403)
    assert client.call(asked)["location"].startswith(f"{hub.cdn_url}/cdn/{NAME}/")
    assert get(hub, path).status_code == 200


# --- the real layout


def test_the_same_seed_gives_the_same_bytes(z_image, qwen_vl, fine_tune, tmp_path):
    state = torch.random.get_rng_state()
    save_z_image_repository(tmp_path / "z")
    save_qwen_vl_repository(tmp_path / "q")
    save_qwen_vl_repository(tmp_path / "other", seed=1)
    assert files_of(tmp_path / "z") == files_of(z_image)
    assert files_of(tmp_path / "q") == files_of(qwen_vl)
    changed = {path for path, file in files_of(qwen_vl).items() if files_of(tmp_path / "other")[path] != file}
    assert changed == {f"model-0000{number}-of-00002.safetensors" for number in (1, 2)}
    assert torch.equal(state, torch.random.get_rng_state())
    same, tuned = files_of(z_image), files_of(fine_tune)
    parts = ("text_encoder/model", "vae/", "tokenizer/")
    assert all(tuned[path] == file for path, file in same.items() if path.startswith(parts))


def assert_nothing_is_missing(found):
    assert not any(found.values()), found


def test_the_bases_parts_load(z_image, fine_tune):
    for folder in (z_image, fine_tune):
        for part, place in ((ZImageTransformer2DModel, "transformer"), (AutoencoderKL, "vae")):
            model, found = part.from_pretrained(folder / place, dtype=torch.float32, output_loading_info=True)
            assert_nothing_is_missing(found)
        assert all(weight.isfinite().all() for weight in model.parameters())
    config = ZImageTransformer2DModel.load_config(z_image / "transformer")
    assert {name: config[name] for name in TRANSFORMER} == TRANSFORMER
    encoder, found = Qwen3Model.from_pretrained(z_image / "text_encoder", output_loading_info=True)
    assert_nothing_is_missing(found)
    assert encoder.dtype == torch.bfloat16 and encoder.config.rope_parameters["rope_theta"] == 1e6
    assert FlowMatchEulerDiscreteScheduler.from_pretrained(z_image / "scheduler").config.shift == 3.0


def test_the_number_types_and_shards_are_the_real_ones(z_image, fine_tune):
    def dtypes(folder, pattern):
        types = set()
        for path in folder.glob(pattern):
            with safe_open(path, "pt") as file:
                types |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        return types

    assert dtypes(z_image, "transformer/*.safetensors") == {"F32"}
    assert dtypes(z_image, "text_encoder/*.safetensors") == dtypes(z_image, "vae/*.safetensors") == {"BF16"}
    assert dtypes(fine_tune, "transformer/diffusion_pytorch_model.safetensors") == {"BF16"}
    assert dtypes(fine_tune, "transformer/*.fp16.safetensors") == {"F16"}
    for part in ("transformer", "text_encoder"):
        (index,) = (z_image / part).glob("*.safetensors.index.json")
        files = set(json.loads(index.read_text())["weight_map"].values())
        assert files == {path.name for path in (z_image / part).glob("*.safetensors")} and len(files) == 3


def test_the_tokenizer_knows_what_prompts_are_made_of(z_image, qwen_vl):
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (z_image / "tokenizer", qwen_vl)]
    names = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    text = "<|im_start|>user\nthe dog 毛<|im_end|>\n<|im_start|>assistant\n"
    for tokenizer in tokenizers:
        numbers = tokenizer.convert_tokens_to_ids(names)
        assert len(set(numbers)) == 5 and min(numbers) > 256
        message = [{"role": "user", "content": "the dog 毛"}]
        made = tokenizer.apply_chat_template(
            message, tokenize=False, add_generation_prompt=True, enable_thinking=True
        )
        assert made == text
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    config = json.loads((qwen_vl / "config.json").read_text())
    assert config["image_token_id"] == tokenizers[0].convert_tokens_to_ids("<|image_pad|>")


def test_the_base_draws(z_image):
    pipeline = ZImagePipeline.from_pretrained(z_image, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a dog", num_inference_steps=1, guidance_scale=0.0, height=48, width=32).images[0]
    assert picture.size == (32, 48) and len(set(picture.tobytes())) > 10


def test_the_vision_language_model_loads(qwen_vl):
    model, found = Qwen3VLForConditionalGeneration.from_pretrained(qwen_vl, output_loading_info=True)
    assert_nothing_is_missing(found)
    assert model.config.text_config.rope_parameters["rope_theta"] == 5e6
    processor = Qwen2VLImageProcessorPil.from_pretrained(qwen_vl)
    assert (processor.patch_size, processor.merge_size, *processor.image_mean) == (16, 2, 0.5, 0.5, 0.5)


def test_visual_tensors_lie_in_both_shards_among_the_others(qwen_vl):
    places = json.loads((qwen_vl / "model.safetensors.index.json").read_text())["weight_map"]
    for number in (1, 2):
        path = qwen_vl / f"model-0000{number}-of-00002.safetensors"
        with safe_open(path, "pt") as file:
            order = file.offset_keys()
            assert {file.get_slice(name).get_dtype() for name in order} == {"BF16"}
        assert {name for name, place in places.items() if place == path.name} == set(order)
        assert {".".join(name.split(".")[:2]) for name in order} == {"model.language_model", "model.visual"}
        changes = sum(("visual" in one) != ("visual" in next_one) for one, next_one in pairwise(order))
        assert changes >= 3
