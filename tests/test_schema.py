"""What the program reads back says its form: an earlier one is read, a later one refused in words."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from dopsd_app import __version__
from dopsd_app.config import ConfigError, load_preset, make_config, save_config
from dopsd_app.data.pictures import read_examples
from dopsd_app.errors import KnownFailure
from dopsd_app.hub.model_card import make_card
from dopsd_app.jobs.job import RunError, create_job, read_kind
from dopsd_app.jobs.kinds import DRAW
from dopsd_app.jobs.lora_file import LORA_SCHEMA, check_intact, read_facts
from dopsd_app.jobs.runs import LORA_FILE, list_runs
from dopsd_app.method.encode import CACHE_SCHEMA, encode_examples
from dopsd_app.models.architecture import BaseModelError
from dopsd_app.models.catalog import CATALOG
from dopsd_app.models.eyes import CONFIGURATION, CUT_OUT, SCHEMA, VISION_TOWERS_FOLDER, find_eyes
from dopsd_app.models.hub_record import HubRecord, recall, remember
from dopsd_app.models.repository import assets_folder
from dopsd_app.schema import STAMP_FILE, check_folder, check_schema, claim_folder

ZEROS = np.zeros((1, 1), dtype=np.float32)
LATER = "was made by a later version of this program (9.8.7). Use that one."


def later(stored: dict) -> dict:
    return {**stored, "schema": stored["schema"] + 1, "version": "9.8.7"}


def earlier(stored: dict) -> dict:
    """As it was before there were numbers."""
    return {name: value for name, value in stored.items() if name not in ("schema", "version")}


def rewrite(file, change) -> None:
    stored = json.loads(file.read_bytes())
    assert stored["version"] == __version__
    file.write_text(json.dumps(change(stored)))


def refused(what: str = "", failure: type[KnownFailure] = KnownFailure):
    return pytest.raises(failure, match=re.escape(f"{what} {LATER}"))


@pytest.mark.parametrize("number", [0, -1, "1", 1.0, True, None])
def test_what_is_no_number_is_not_taken_for_one(number):
    with pytest.raises(ValueError, match="is no schema number"):
        check_schema({"schema": number}, 1, "it")


def test_a_runs_settings(new_run, tiny_config):
    run = new_run(tiny_config)
    file = run.path / "config.json"
    rewrite(file, earlier)
    assert run.config == tiny_config
    save_config(tiny_config, file)
    rewrite(file, later)
    with refused(run.id, ConfigError):
        _ = run.config
    assert list_runs(run.runs_dir) == [run]  # it is listed all the same, and can be deleted
    file.write_text(json.dumps({**json.loads(file.read_bytes()), "schema": "two"}))
    with pytest.raises(ConfigError, match=r"its config\.json is damaged"):
        _ = run.config


def test_a_job(tmp_path):
    job = create_job(tmp_path, DRAW, {"prompt": "zorp"})
    content = job.job_file.read_bytes()
    rewrite(job.job_file, lambda stored: {name: x for name, x in stored.items() if name != "version"})
    assert (read_kind(job), job.request) == (DRAW, {"prompt": "zorp"})
    job.job_file.write_bytes(content)
    rewrite(job.job_file, later)
    for read in (lambda: job.kind, lambda: job.request):
        with refused(job.id, RunError):
            read()
    job.job_file.write_bytes(content)
    rewrite(job.job_file, lambda stored: {**stored, "schema": 0})
    with pytest.raises(RunError, match=r"its job\.json is damaged"):
        _ = job.kind


def lora_file(run, facts: dict | None):
    """A file in the place of the run's LoRA that says this of itself."""
    metadata = None if facts is None else {"dopsd": json.dumps(facts)}
    weights = {"transformer.x.lora_A.weight": ZEROS}
    save_file(weights, run.lora_file, metadata)
    return run.lora_file


def test_a_lora_file(new_run):
    run = new_run(make_config({**load_preset("pocket").settings, "steps": 9}))
    now = {"schema": LORA_SCHEMA, "version": __version__, "steps": 5}
    for facts, steps in ((now, 5), (earlier(now), 5), (None, 9)):
        file = lora_file(run, facts)
        check_intact(run, file)
        assert read_facts(file) == (facts or {})
        card = str(make_card(run, repo_id="ann/zorp"))
        assert f"- {steps} optimizer steps" in card
        assert (f"- version of the trainer: {__version__}" in card) == (facts == now)
    file = lora_file(run, later(now))
    for read in (lambda: check_intact(run, file), lambda: make_card(run, repo_id="ann/zorp")):
        with refused(LORA_FILE, RunError):
            read()
    for facts in ([], {"schema": 0}):
        with pytest.raises(RunError, match="cannot be read as a LoRA file"):
            read_facts(lora_file(run, facts))
    run.lora_file.write_bytes(b"weights")
    with pytest.raises(RunError, match="cannot be read as a LoRA file"):
        check_intact(run, run.lora_file)


def encode(run, base_model, cache):
    config = run.config
    examples = read_examples(run.dataset, minimum_side=config.minimum_side).examples
    list(encode_examples(base_model, config, examples, (), (), cache))


def test_the_cache_of_encoded_pictures(new_run, tiny_config, tiny_z_image, tmp_path):
    run, cache = new_run(tiny_config), tmp_path / "cache"
    encode(run, tiny_z_image, cache)
    kept = {file: file.stat().st_mtime_ns for file in cache.glob("*.safetensors")}
    (cache / STAMP_FILE).unlink()
    encode(run, tiny_z_image, cache)
    assert kept and kept == {file: file.stat().st_mtime_ns for file in cache.glob("*.safetensors")}
    assert json.loads((cache / STAMP_FILE).read_bytes()) == {"schema": CACHE_SCHEMA, "version": __version__}
    rewrite(cache / STAMP_FILE, later)
    with refused(f"The cache {cache}"):
        encode(run, tiny_z_image, cache)
    assert {file: file.stat().st_mtime_ns for file in cache.glob("*.safetensors")} == kept


def test_eyes_that_were_cut_out():
    repository = "ann/eyes-of-any-version"
    folder = assets_folder(VISION_TOWERS_FOLDER, repository) / ("1" * 40)
    folder.mkdir(parents=True)
    save_file({"visual.x": ZEROS}, folder / CUT_OUT)
    for name in CONFIGURATION:
        (folder / name).write_text("{}")
    assert find_eyes(repository) == folder
    claim_folder(folder, SCHEMA, "it", BaseModelError)
    assert find_eyes(repository) == folder
    rewrite(folder / STAMP_FILE, later)
    with refused(f"The folder {folder}", BaseModelError):
        find_eyes(repository)
    with refused("it", BaseModelError):
        claim_folder(folder, SCHEMA, "it", BaseModelError)


def test_what_the_hub_told():
    repository, commit = "ann/told-by-any-version", "2" * 40
    known = CATALOG["z-image-turbo"]
    record = HubRecord(
        {"model_index.json": 3}, {"model_index.json": "1" * 40}, known.architecture, known.sizes
    )
    remember(repository, commit, record)
    file = assets_folder("bases", repository) / f"{commit}.json"
    assert recall(repository, commit) == record
    content = file.read_bytes()
    rewrite(file, lambda stored: {name: x for name, x in earlier(stored).items() if name != "digests"})
    assert recall(repository, commit) is None  # it does not tell what the files hold: the Hub is asked anew
    file.write_bytes(content)
    rewrite(file, later)
    with refused("", BaseModelError):
        recall(repository, commit)


def test_a_folder_whose_number_is_damaged_is_told(tmp_path):
    claim_folder(tmp_path / "cache", 1, "The cache")
    (tmp_path / "cache" / STAMP_FILE).write_text("[1")
    with pytest.raises(KnownFailure, match=r"its schema\.json is damaged\. Delete that folder"):
        check_folder(tmp_path / "cache", 1, "The cache")
