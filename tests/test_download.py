"""Base models from an imitation of the Hub, laid out as the real ones are: fetched by the real client."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from dopsd_app.jobs.events import read_events
from dopsd_app.jobs.job import list_jobs
from dopsd_app.models.pipeline_folder import read_licence
from dopsd_app.progress import DownloadProgress
from tests.support.downloader import Downloader
from tests.support.imitation_hub import ImitationHub
from tests.support.real_layout import save_qwen_vl_repository, save_z_image_repository
from tests.support.small_disk import on_a_small_disk
from tests.support.waiting import wait_for

pytestmark = pytest.mark.process

ROOT = Path(__file__).parent.parent
Z_IMAGE, QWEN = "Tongyi-MAI/Z-Image-Turbo", "Qwen/Qwen3-VL-4B-Instruct"
FINE_TUNE = "Ann/z-image-comic"
TOKEN = "hf_marked7Qx41kTokenOfAnn"
WEIGHTS = r"\.safetensors$"
SHARD = r"transformer/diffusion_pytorch_model-00001"
HEADER = 100_001  # bytes that are read of each file of weights, to know how large the model is


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repositories")
    save_z_image_repository(folder / "z-image")
    save_z_image_repository(folder / "newer", seed=1)
    save_z_image_repository(folder / "comic", fine_tune=True)
    save_qwen_vl_repository(folder / "qwen")
    return folder


@pytest.fixture(scope="module")
def hub_and_process(tmp_path_factory):
    with ImitationHub() as hub, Downloader(hub, tmp_path_factory.mktemp("process")) as process:
        yield hub, process


@pytest.fixture
def hub(hub_and_process, repositories):
    hub = hub_and_process[0]
    hub.reset()
    hub.add_model(Z_IMAGE, repositories / "z-image")
    hub.add_model(QWEN, repositories / "qwen")
    return hub


@pytest.fixture
def call(hub_and_process, hub, tmp_path):
    """Calls a function of download_process.py for this test's cache."""
    return lambda *arguments, **keywords: hub_and_process[1](tmp_path, *arguments, **keywords)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def same_files(folder: Path, original: Path) -> set[str]:
    """The files of a folder, all of which are those of the original."""
    paths = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert all(sha256(folder / path) == sha256(original / path) for path in paths)
    return paths


def tensors(folder: Path) -> dict[str, list]:
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            found |= {name: opened.get_tensor(name).tolist() for name in opened.keys()}  # noqa: SIM118
    return found


def eyes_of(folder: Path) -> dict[str, list]:
    return {name: value for name, value in tensors(folder).items() if name.startswith("model.visual.")}


# --- what is fetched


def test_what_the_pipeline_needs_is_fetched_once_and_without_network_it_stays(
    hub, call, repositories, tmp_path
):
    told = call("fetch", Z_IMAGE)
    folder = Path(told["folder"])
    paths = same_files(folder, repositories / "z-image")
    assert {path.rpartition("/")[0] for path in paths} == {
        "", "scheduler", "text_encoder", "tokenizer", "transformer", "vae",
    }  # fmt: skip
    assert paths.isdisjoint({".gitattributes", "assets/showcase.png"})
    assert all((folder / path).is_symlink() for path in paths)  # as the library makes them
    asked = len(hub.requests)
    hub.stop()
    try:
        again = call("fetch", Z_IMAGE)
    finally:
        hub.start()
    assert again["folder"] == str(folder) and again["steps"] == []
    assert len(hub.requests) == asked
    assert call("fetch", "z-image-turbo")["folder"] == str(folder)  # the same by its name in the catalog


def test_the_eyes_are_cut_out_of_the_files_that_hold_them(hub, call, repositories):
    eyes = Path(call("fetch", Z_IMAGE)["eyes"])
    assert tensors(eyes) == eyes_of(repositories / "qwen")
    for name in ("config.json", "preprocessor_config.json"):
        assert sha256(eyes / name) == sha256(repositories / "qwen" / name)
    shards = list((repositories / "qwen").glob("*.safetensors"))
    assert hub.fetched("Qwen/") < 0.8 * sum(shard.stat().st_size for shard in shards)


def test_where_parts_of_files_are_refused_whole_ones_are_fetched(hub, call, repositories):
    hub.ranges = False
    eyes = Path(call("fetch", Z_IMAGE)["eyes"])
    assert eyes_of(eyes) == eyes_of(repositories / "qwen")
    assert sorted(path.name for path in eyes.glob("*.safetensors")) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


def test_files_that_other_programs_fetched_are_used(hub, call, tmp_path):
    code = (
        "from huggingface_hub import snapshot_download as s;"
        f" print(s({Z_IMAGE!r}, ignore_patterns=['vae/*.safetensors'])); print(s({QWEN!r}))"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | hub.environment(tmp_path),
        check=True,
        capture_output=True,
    )
    before = hub.fetched(WEIGHTS)
    told = call("fetch", Z_IMAGE)
    assert Path(told["eyes"]).parent.parent.name == "models--Qwen--Qwen3-VL-4B-Instruct"  # nothing twice
    vae = Path(told["folder"]) / "vae" / "diffusion_pytorch_model.safetensors"
    assert vae.stat().st_size <= hub.fetched(WEIGHTS) - before <= vae.stat().st_size + 7 * HEADER


def test_a_revision_is_obeyed_and_told(hub, call, repositories):
    old = call("fetch", Z_IMAGE)
    new = hub.add_model(Z_IMAGE, repositories / "newer")
    assert call("fetch", Z_IMAGE)["commit"] == old["commit"]  # all is here: the Hub is not asked
    told = call("fetch", Z_IMAGE, new)
    assert told["commit"] == new
    same_files(Path(told["folder"]), repositories / "newer")
    assert call("places", Z_IMAGE, old["commit"])["folder"] == old["folder"]
    assert "no such revision" in call("fetch", Z_IMAGE, "f" * 40)


def test_of_a_fine_tune_no_other_weights_are_fetched_and_its_licence_is_known(hub, call, repositories):
    hub.add_model(FINE_TUNE, repositories / "comic")
    paths = same_files(Path(call("fetch", FINE_TUNE)["folder"]), repositories / "comic")
    assert "transformer/diffusion_pytorch_model.safetensors" in paths
    assert not any(path.endswith((".bin", ".fp16.safetensors")) for path in paths)
    facts = call("facts", FINE_TUNE)
    assert facts["licence"] == {
        "id": "other", "name": "my-licence", "link": "https://example.org/licence",
    }  # fmt: skip
    assert facts["repository"] == FINE_TUNE


def test_the_hub_tells_sizes_before_a_byte_of_weights_is_fetched(hub, call, repositories):
    told = call("ask", Z_IMAGE)
    assert told["size"] == told["missing"]
    assert told["facts"]["sizes"]["parameters"] > 0
    call("fetch", Z_IMAGE)
    sizes = call("facts", Z_IMAGE)["sizes"]
    assert sizes["parameters"] == told["facts"]["sizes"]["parameters"]
    assert sizes["dim"] == told["facts"]["sizes"]["dim"] == 64
    assert sizes["decoder_parameters"] == told["facts"]["sizes"]["decoder_parameters"]
    assert call("kind", Z_IMAGE) == "z-image-turbo"


# --- trouble on the way


def test_a_head_that_is_never_loaded_is_not_counted(hub, call, repositories, tmp_path):
    hub.add_model(FINE_TUNE, repositories / "comic")
    sizes = call("ask", FINE_TUNE)["facts"]["sizes"]
    folder = tmp_path / "untied"
    shutil.copytree(repositories / "comic", folder)
    file = folder / "text_encoder" / "model-00001-of-00003.safetensors"
    with safe_open(file, framework="pt") as opened:
        weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    save_file({**weights, "lm_head.weight": next(iter(weights.values())).clone()}, file)
    hub.add_model("Ann/untied", folder)
    assert call("ask", "Ann/untied")["facts"]["sizes"]["encoder_parameters"] == sizes["encoder_parameters"]


def test_a_broken_connection_goes_on_where_it_was(hub, call, repositories):
    hub.cut(SHARD, 300_000, times=2)
    hub.stall("transformer/diffusion_pytorch_model-00002", 200_000)
    told = call("fetch", Z_IMAGE)
    same_files(Path(told["folder"]), repositories / "z-image")
    shard = repositories / "z-image" / "transformer" / "diffusion_pytorch_model-00001-of-00003.safetensors"
    # Of each cut, at most the piece that was just being read came twice.
    assert hub.fetched(SHARD) <= shard.stat().st_size + HEADER + 2 * 65_536


def test_a_server_may_send_less_than_it_was_asked_for(hub, call, repositories):
    hub.longest_range = 101_000  # the headers come at once
    told = call("fetch", Z_IMAGE)
    same_files(Path(told["folder"]), repositories / "z-image")
    assert tensors(Path(told["eyes"])) == eyes_of(repositories / "qwen")


def test_what_was_cut_off_on_the_disk_is_fetched_again(hub, call, repositories):
    told = call("fetch", Z_IMAGE)
    folder, eyes = Path(told["folder"]), Path(told["eyes"])
    shard = folder / "transformer" / "diffusion_pytorch_model-00002-of-00003.safetensors"
    for file in (shard.resolve(), eyes / "model.safetensors"):
        os.truncate(file, file.stat().st_size // 2)
    (folder / "tokenizer" / "vocab.json").unlink()
    assert "is incomplete: it lacks transformer/diffusion_pytorch_model-00002" in call("places", Z_IMAGE)
    same_files(Path(call("fetch", Z_IMAGE)["folder"]), repositories / "z-image")
    assert tensors(eyes) == eyes_of(repositories / "qwen")


def test_an_interrupted_end_is_no_end(hub, call, repositories):
    call("fetch", Z_IMAGE)  # the eyes are here from now on
    hub.add_model(FINE_TUNE, repositories / "comic")
    hub.fail(f"{FINE_TUNE}/resolve/.*tokenizer/vocab.json", 403, times=1000)
    assert "does not let this computer read" in call("fetch", FINE_TUNE)
    assert "incomplete" in call("places", FINE_TUNE)  # though the tokenizer could be loaded without it
    hub.mend()
    same_files(Path(call("fetch", FINE_TUNE)["folder"]), repositories / "comic")


def test_a_commit_that_comes_while_one_is_fetched_changes_nothing(hub, call, repositories):
    hub.slow(WEIGHTS, 600_000)
    newer = threading.Timer(1.0, hub.add_model, (Z_IMAGE, repositories / "newer"))
    newer.start()
    told = call("fetch", Z_IMAGE)
    newer.join()
    assert len(told["steps"]) > 20  # it came in the middle
    same_files(Path(told["folder"]), repositories / "z-image")


def test_what_is_whole_serves_though_another_program_knows_a_newer_commit(hub, call, repositories, tmp_path):
    told = call("fetch", Z_IMAGE)
    hub.add_model(Z_IMAGE, repositories / "newer")
    code = f"from huggingface_hub import hf_hub_download as h; h({Z_IMAGE!r}, 'model_index.json')"
    environment = os.environ | hub.environment(tmp_path)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
    hub.stop()
    try:
        assert call("fetch", Z_IMAGE)["folder"] == told["folder"]
    finally:
        hub.start()


def test_where_only_the_eyes_are_missing_all_else_is_known(hub, call, repositories, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(repositories / "comic", folder)
    assert call("facts", str(folder))["licence"]["name"] == "my-licence"
    offer = call("ask", str(folder))
    eyes = Path(call("fetch", str(folder))["eyes"])
    assert offer["size"] == (eyes / "model.safetensors").stat().st_size
    assert tensors(eyes) == eyes_of(repositories / "qwen")
    assert not hub.fetched("Ann/|Tongyi")


def test_a_server_that_refuses_ranges_begins_a_broken_file_anew(hub, call, repositories):
    hub.ranges = False
    hub.cut(SHARD, 300_000)
    same_files(Path(call("fetch", Z_IMAGE)["folder"]), repositories / "z-image")


def test_when_the_hub_is_gone_one_sentence_tells_what_is_kept(hub, call, repositories):
    hub.slow(WEIGHTS, 400_000)
    call("fetch", Z_IMAGE, stop_after=1_000_000)
    hub.mend()
    hub.fail(SHARD, 503, times=1000)
    told = call("fetch", Z_IMAGE)
    assert "problem of its own (status 503)" in told
    assert "MB are here and are kept: the next try goes on from there." in told
    hub.mend()
    hub.requests.clear()
    same_files(Path(call("fetch", Z_IMAGE)["folder"]), repositories / "z-image")
    assert any(request.headers.get("range", "bytes=0-")[6] != "0" for request in hub.asked(SHARD))


def test_cancelling_takes_less_than_a_second_though_nothing_comes(hub, call, repositories):
    hub.stall(SHARD, 150_000, times=100)
    told = call("fetch", Z_IMAGE, stop_after=3_000_000)
    assert told["closed_in"] < 0.5
    hub.mend()
    same_files(Path(call("fetch", Z_IMAGE)["folder"]), repositories / "z-image")


def test_a_file_that_came_damaged_is_told_and_thrown_away(hub, call, tmp_path, repositories):
    hub.slow(SHARD, 200_000)
    call("fetch", Z_IMAGE, stop_after=3_400_000)  # all but this one, and some of it
    hub.mend()
    (partial,) = [path for path in tmp_path.rglob("*.incomplete") if path.stat().st_size]
    partial.write_bytes(bytes(partial.stat().st_size))
    told = call("fetch", Z_IMAGE)
    assert "diffusion_pytorch_model-00001-of-00003.safetensors came damaged from the Hub" in told
    same_files(Path(call("fetch", Z_IMAGE)["folder"]), repositories / "z-image")


def test_progress_has_bytes_total_and_speed(hub, call):
    hub.slow(WEIGHTS, 1_000_000)
    steps = call("fetch", Z_IMAGE)["steps"]
    measured = [step for step in steps if step["total"]]
    total = measured[0]["total"]
    assert {step["total"] for step in measured} == {total}
    assert [step["done"] for step in measured] == sorted(step["done"] for step in measured)
    assert measured[-1]["done"] == total
    # Four files at a time, of a megabyte a second each.
    assert 500_000 < max(step["speed"] for step in measured) < 8_000_000


# --- what cannot be


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Ann/nothing", "The Hub does not know Ann/nothing"),
        (QWEN, f"{QWEN} is no pipeline of diffusers: it has no model_index.json."),
        (
            "Ann/other",
            "`Ann/other` is a StableDiffusionPipeline, which cannot be trained here. Take Z-Image-Turbo,"
            " FLUX.2 klein, or a model made from one of them.",
        ),
        ("Ann/pickles", "Ann/pickles has no safetensors file for its vae. Only that format is read."),
    ],
)
def test_what_is_no_base_model_is_told(hub, call, tmp_path, repositories, name, told):
    other = tmp_path / "other"
    other.mkdir()
    (other / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    hub.add_model("Ann/other", other)
    pickles = tmp_path / "pickles"
    shutil.copytree(repositories / "z-image", pickles)
    weights = pickles / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    hub.add_model("Ann/pickles", pickles)
    assert told in call("fetch", name)


def test_what_takes_dozens_of_steps_is_told_before_its_weights(hub, call, tmp_path, repositories):
    """Z-Image, known by the shift of its scheduler, and FLUX.2 klein base, whose index lacks one word."""
    undistilled = tmp_path / "undistilled"
    shutil.copytree(repositories / "comic", undistilled)
    scheduler = undistilled / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"shift": 6.0}))
    hub.add_model("Ann/undistilled", undistilled)
    told = call("fetch", "Ann/undistilled")
    assert "`Ann/undistilled` was not made to draw in a few steps" in told and "Z-Image-Turbo" in told
    klein = tmp_path / "klein"
    klein.mkdir()
    (klein / "model_index.json").write_text(json.dumps({"_class_name": "Flux2KleinPipeline"}))
    hub.add_model("Ann/klein-base", klein)
    told = call("fetch", "Ann/klein-base")
    assert "`Ann/klein-base` was not made to draw in a few steps" in told and "FLUX.2 klein" in told
    assert not any(hub.fetched(f"{name}.*safetensors$") for name in ("Ann/undistilled", "Ann/klein-base"))
    # A fine-tune of Turbo keeps its scheduler.
    hub.add_model("Ann/comic", repositories / "comic")
    assert Path(call("fetch", "Ann/comic")["folder"]).is_dir()


def odd_repository(folder: Path, what: str) -> None:
    """Spoils a repository in some way."""
    config = folder / "transformer" / "config.json"
    index = folder / "text_encoder" / "model.safetensors.index.json"
    match what:
        case "no configuration":
            config.unlink()
        case "no JSON":
            config.write_text("{")
        case "a list":
            config.write_text("[]")
        case "no blocks":
            (folder / "vae" / "config.json").write_text('{"block_out_channels": []}')
        case "a shard is missing":
            (folder / "text_encoder" / "model-00002-of-00003.safetensors").unlink()
        case "files that are lists":
            index.write_text('{"weight_map": {"a": ["x"]}}')
        case "files elsewhere":
            index.write_text('{"weight_map": {"a": "../../../passwd"}}')
        case "no weights":
            (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"\xff" * 1000)
        case "a part elsewhere":
            (folder / "model_index.json").write_text('{"_class_name": "ZImagePipeline", "..": ["a", "b"]}')


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("no configuration", "itself is incomplete: it lacks transformer/config.json"),
        ("no JSON", "The configuration of Ann/odd cannot be read"),
        ("a list", "The configuration of Ann/odd cannot be read"),
        ("no blocks", "The configuration of Ann/odd cannot be read"),
        (
            "a shard is missing",
            "itself is incomplete: it lacks text_encoder/model-00002-of-00003.safetensors",
        ),
        ("files that are lists", "text_encoder/model.safetensors.index.json is damaged"),
        ("files elsewhere", "itself is incomplete: it lacks text_encoder/../../../passwd"),
        ("no weights", "vae/diffusion_pytorch_model.safetensors of Ann/odd is no safetensors file"),
        ("a part elsewhere", "has a part '..', which is no name of one"),
    ],
)
def test_an_odd_repository_is_told_before_gigabytes_are_fetched(
    hub, call, repositories, tmp_path, what, told
):
    folder = tmp_path / "odd"
    shutil.copytree(repositories / "z-image", folder)
    odd_repository(folder, what)
    hub.add_model("Ann/odd", folder)
    assert told in call("fetch", "Ann/odd")
    assert hub.fetched("Ann/odd.*safetensors$") < 8 * HEADER


@pytest.mark.parametrize(
    ("front", "licence"),
    [
        ("license: mit", ("mit", "mit", "")),
        ("license: [mit, apache-2.0]", ("", "", "")),
        ("license: mit\nmodel-index: 5\n1: x", ("mit", "mit", "")),
        ("license: 'a: [\n", ("", "", "")),
        ("license: other\nlicense_name: X\nlicense_link: LICENSE.md", ("other", "X", "LICENSE.md")),
        ("- a list", ("", "", "")),
    ],
)
def test_a_licence_is_read_as_far_as_it_can_be(tmp_path, front, licence):
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n\nwords")
    read = read_licence(tmp_path)
    assert (read.id, read.name, read.link) == licence


def test_a_cache_that_cannot_be_written_is_told(hub, hub_and_process, tmp_path):
    (tmp_path / "hub").write_text("a file where a folder should be")
    told = hub_and_process[1](tmp_path, "fetch", Z_IMAGE)
    assert "cannot be used: " in told and "HF_HOME" in told


def test_a_gate_says_what_to_do(hub, call, hub_and_process, repositories, tmp_path_factory):
    hub.add_model(FINE_TUNE, repositories / "comic", gated=True)
    told = call("fetch", FINE_TUNE)
    assert f"accept its terms at https://huggingface.co/{FINE_TUNE}" in told and "hf auth login" in told
    folder = tmp_path_factory.mktemp("space")
    with Downloader(hub, folder, SYSTEM="spaces") as process:  # which has nobody who could sign in
        told = process(folder, "fetch", FINE_TUNE)
        assert "a Space reads with nobody's token" in told and "hf auth login" not in told
    hub.add_account(TOKEN, "Bob")
    folder = tmp_path_factory.mktemp("bob")
    with Downloader(hub, folder, HF_TOKEN=TOKEN) as process:
        told = process(folder, "fetch", FINE_TUNE)
        assert "accept its terms at" in told and "hf auth login" not in told
        assert TOKEN not in told
        hub.grant(TOKEN, FINE_TUNE)
        same_files(Path(process(folder, "fetch", FINE_TUNE)["folder"]), repositories / "comic")
    assert not any(request.token for request in hub.asked("GET /cdn"))


def test_a_wrong_token_is_told_as_that(hub, hub_and_process, tmp_path):
    with Downloader(hub, tmp_path, HF_TOKEN="hf_ofNobody") as process:
        told = process(tmp_path, "fetch", Z_IMAGE)
    assert f"The Hub does not let this computer read {Z_IMAGE}" in told and "HF_TOKEN" in told
    assert "hf_ofNobody" not in told


def test_a_token_without_the_right_to_gated_repositories_is_told_which_right(hub, call, repositories):
    """Its owner may have accepted the terms: a fine-grained token still has no such right by itself."""
    hub.add_model(FINE_TUNE, repositories / "comic", gated=True)
    says = "Please enable access to public gated repositories in your fine-grained token settings"
    hub.fail(
        f".*{FINE_TUNE}/resolve/.*", 403, {"X-Error-Message": f"{says} to view this repository."}, times=100
    )
    told = call("fetch", FINE_TUNE)
    assert f"This token may not read gated repositories such as {FINE_TUNE}" in told
    assert "https://huggingface.co/settings/tokens" in told and "hf auth login" not in told


def test_a_disk_without_room_is_told_before_the_first_byte(hub, call, hub_and_process):
    try:
        call("set_room", free=200_000_000)
        told = call("fetch", Z_IMAGE)
    finally:
        call("set_room", free=10**15)
    assert "needs 3 MB more on the disk of" in told and "200 MB are free" in told and "HF_HOME" in told
    assert hub.fetched("Tongyi") < 8 * HEADER


def test_without_network_it_is_told_at_once(call, hub):
    hub.stop()
    begun = time.monotonic()
    try:
        told = call("fetch", Z_IMAGE)
    finally:
        hub.start()
    assert told == "The Hub cannot be reached: see whether this computer is online, then try again."
    assert time.monotonic() - begun < 5


# --- the command line


STARTED: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def _nobody_downloads_on():
    """A test that fails leaves no process behind, which would hold what the next ones need."""
    yield
    for process in STARTED:
        process.kill()
        process.communicate()
    STARTED.clear()


def run_command(hub, home, *arguments, prefix=(), **environment):
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "SPACE"))}
    process = subprocess.Popen(
        [*prefix, sys.executable, "-m", "dopsd_app", "download", *arguments],
        env=ours | hub.environment(home) | environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    STARTED.append(process)
    return process


def test_downloads_that_are_killed_at_random_moments_complete(hub, call, repositories, tmp_path):
    hub.slow(WEIGHTS, 600_000)
    draw = random.Random(0)
    for _ in range(4):
        process = run_command(hub, tmp_path, "z-image-turbo")
        time.sleep(draw.uniform(0.5, 2.0))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    hub.mend()
    process = run_command(hub, tmp_path, "z-image-turbo")
    out, err = process.communicate()
    assert process.returncode == 0, err
    same_files(Path(call("places", Z_IMAGE)["folder"]), repositories / "z-image")
    # A killed client leaves its own beginnings of small files, under names of their own.
    assert not [
        path
        for path in tmp_path.rglob("*.incomplete")
        if not re.search(r"\.[0-9a-f]{8}\.incomplete$", path.name)
    ]
    assert str(call("places", Z_IMAGE)["folder"]) in out


def test_two_processes_fetch_every_file_once(hub, call, repositories, tmp_path):
    hub.slow(WEIGHTS, 2_000_000)
    both = [run_command(hub, tmp_path, "z-image-turbo") for _ in range(2)]
    told = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    same_files(Path(call("places", Z_IMAGE)["folder"]), repositories / "z-image")
    shard = repositories / "z-image" / "transformer" / "diffusion_pytorch_model-00001-of-00003.safetensors"
    assert hub.fetched(SHARD) <= shard.stat().st_size + 2 * HEADER


def test_ctrl_c_stops_and_says_that_nothing_is_lost(hub, tmp_path):
    hub.slow(WEIGHTS, 100_000)
    process = run_command(hub, tmp_path, "z-image-turbo")
    wait_for(lambda: hub.fetched(SHARD) or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    _, err = process.communicate()
    assert time.monotonic() - begun < 2
    assert process.returncode == 130 and "What was fetched is kept" in err and "Traceback" not in err


def test_a_full_disk_is_told_and_the_download_goes_on(hub, call, repositories, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    prefix = on_a_small_disk(home)
    # The check before the first byte is passed: other programs may fill a disk too.
    code = (
        "import sys; from dopsd_app.models import download; download.free_disk = lambda folder: 10**15;"
        " from dopsd_app.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "SPACE"))}
    done = subprocess.run(
        [*prefix, sys.executable, "-c", code, "download", "z-image-turbo"],
        env=ours | hub.environment(home) | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "The disk is full" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("pocket-turbo", "comes with the program: there is nothing to fetch."),
        ("z-imag", "There is no base model `z-imag`. Give one of"),
    ],
)
def test_what_cannot_be_fetched_is_told(hub, tmp_path, name, told):
    process = run_command(hub, tmp_path, name)
    _, err = process.communicate()
    assert process.returncode == 2 and told in err


def test_a_download_is_a_job_that_outlives_its_command(hub, repositories, tmp_path):
    runs_dir = tmp_path / "runs"
    process = run_command(hub, tmp_path / "home", "z-image-turbo", "--runs", str(runs_dir), "--detach")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "z-image-turbo is being fetched" in out
    [job] = list_jobs(runs_dir)
    deadline = time.monotonic() + 120
    while job.status.busy:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert job.status.state == "finished", job.log_file.read_text()
    assert (Path(job.result["folder"]) / "model_index.json").is_file()
    assert DownloadProgress in {type(event) for event in read_events(job.events_file)}
