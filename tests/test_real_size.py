"""The run of real size: the base that it is of, and what is told of each phase."""

import json
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks import card, real_size
from benchmarks.real_size import EXAMPLE, draw_file, enlarge, measure, save_base, stored_as
from dopsd_app.data.pictures import read_examples
from dopsd_app.jobs.events import Finished, LoraChecked, PreviewSaved, Resumed, StepDone, Warned
from dopsd_app.models.catalog import find_base_model, find_facts
from dopsd_app.models.memory_plan import MemoryPlan
from dopsd_app.models.protocol import Pictures
from dopsd_app.models.z_image import ZImage
from dopsd_app.progress import PhaseProgress

pytestmark = pytest.mark.benchmark

# --- the base


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real-size") / "base"
    save_base(folder, tiny=True)
    return folder


@pytest.mark.parametrize(
    ("part", "stem", "dtype", "prefix"),
    [
        ("transformer", "diffusion_pytorch_model", torch.float32, ""),
        ("text_encoder", "model", torch.bfloat16, "model."),
    ],
)
def test_a_large_part_lies_in_three_files_with_an_index(base, part, stem, dtype, prefix):
    names = [f"{stem}-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert sorted(path.name for path in (base / part).glob("*.safetensors")) == names
    index = json.loads((base / part / f"{stem}.safetensors.index.json").read_text())
    stored = {name: load_file(base / part / name) for name in names}
    assert {weight: file for file, weights in stored.items() for weight in weights} == index["weight_map"]
    weights = {name: weight for weights in stored.values() for name, weight in weights.items()}
    assert {weight.dtype for weight in weights.values()} == {dtype}
    assert all(name.startswith(prefix) for name in weights) and "lm_head.weight" not in weights
    assert sum(weight.nbytes for weight in weights.values()) == index["metadata"]["total_size"]
    assert all(weight.isfinite().all() for weight in weights.values())


def test_the_teachers_eyes_are_as_the_product_cuts_them_out(base):
    assert find_base_model(str(base)).vision_tower == base / "vision_tower"
    files = {path.name for path in (base / "vision_tower").iterdir()}
    assert files == {"config.json", "preprocessor_config.json", "model.safetensors"}
    weights = load_file(base / "vision_tower" / "model.safetensors")
    assert all(name.startswith("model.visual.") for name in weights)
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    config = json.loads((base / "vision_tower" / "config.json").read_text())
    assert (config["model_type"], config["vision_config"]["depth"]) == ("qwen3_vl", 3)
    pictures = json.loads((base / "vision_tower" / "preprocessor_config.json").read_text())
    assert pictures["size"] == {"shortest_edge": 65536, "longest_edge": 16777216}
    told = [pictures[name] for name in ("patch_size", "merge_size", "image_mean", "image_std")]
    assert told == [16, 2, [0.5] * 3, [0.5] * 3]


def test_the_product_loads_the_base_and_its_numbers_stay_finite(base):
    sizes = find_facts(str(base)).sizes
    assert (stored_as(base), sizes.parameters) == ("float32", 706_144)
    assert sizes.teacher_tokens(64, "auto").caption == 64 + 256  # of 512 x 512 pixels, 32 x 32 each
    place = find_base_model(str(base))
    loading = {"memory_plan": MemoryPlan(), "sizes": sizes, "teacher_context": "vision_language"}
    model = ZImage(place, torch.device("cpu"), torch.float32, **loading)
    model.load_encoders()
    model.load_transformer()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    teacher = model.encode(Pictures(picture), "a red cube", "teacher")
    latents = model.encode_picture(picture)[None]
    with torch.no_grad():
        velocity = model.predict_velocity(latents, torch.tensor([0.5]), [teacher])
    assert teacher.prompt_embeds.isfinite().all()
    assert velocity.isfinite().all() and velocity.std() > 0


def test_a_file_is_drawn_one_tensor_at_a_time(tmp_path, monkeypatch):
    """Also where a tensor's size is no multiple of 8 bytes; scales are 1, biases 0."""
    draw, alive = real_size.draw, []

    def watched(name, weight):
        assert not any(earlier() is not None for earlier in alive)
        drawn = draw(name, weight)
        alive.append(weakref.ref(drawn))
        return drawn

    monkeypatch.setattr(real_size, "draw", watched)
    shapes = {"b.weight": (3, 5), "norm.weight": (7,), "a.bias": (3,), "a.weight": (200, 300)}
    wanted = {name: torch.empty(shape, dtype=torch.bfloat16, device="meta") for name, shape in shapes.items()}
    draw_file(tmp_path / "some.safetensors", wanted)
    stored = load_file(tmp_path / "some.safetensors")
    assert {name: tuple(weight.shape) for name, weight in stored.items()} == shapes
    assert (stored["norm.weight"] == 1).all() and (stored["a.bias"] == 0).all()
    assert stored["a.weight"].float().std() == pytest.approx(0.02, rel=0.05)


# --- what a run tells


@pytest.fixture
def told(monkeypatch):
    """Events that come after so many seconds each, by the clock that the measurement reads."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(real_size.time, "perf_counter", lambda: clock.now)

    def tell(*events_and_seconds):
        for event, seconds in events_and_seconds:
            clock.now += seconds
            yield event

    return tell


def test_the_time_before_an_event_is_that_of_its_phase(told):
    found = measure(
        told(
            (PhaseProgress("loading", 0, 2), 0.0),
            (PhaseProgress("encoding", 0, 1), 0.3),
            (PhaseProgress("loading", 2, 2), 0.0),
            (Resumed(0), 0.2),
            (StepDone(1, 0.5, 1.0, 0.25, 0), 0.0),
            (PreviewSaved(1, "rollout", ()), 0.4),
            (StepDone(2, 0.75, 1.0, 0.125, 0), 0.0),
            (LoraChecked(2, True, "good"), 0.0),
            (Finished(2, "lora"), 0.0),
        )
    )
    phases = {"loading": 0.2, "encoding": 0.3, "training": 0.0, "drawing": 0.4, "checking": 0.0}
    assert found["seconds"] == phases
    assert (found["seconds_per_step"], found["losses"]) == ([0.25, 0.125], [0.5, 0.75])
    assert found["check"] == "good"
    resident = found["resident_until_gb"]
    assert resident.keys() == phases.keys()
    assert 0 < resident["encoding"] <= resident["loading"] <= resident["checking"]


def test_what_went_wrong_stands_beside_what_was_measured_until_then(told):
    def fails():
        yield from told((StepDone(1, 0.5, 1.0, 0.25, 0), 1.5), (Warned(1, "The preview failed."), 0.0))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB. GPU 0 has a lot")

    found = measure(fails())
    assert found["warnings"] == ["The preview failed."]
    assert found["out_of_memory"] == "CUDA out of memory. Tried to allocate 1 GiB"
    assert (found["seconds"]["training"], found["losses"]) == (1.5, [0.5])


def test_a_case_takes_the_place_of_its_earlier_row_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(real_size, "RESULT", tmp_path / "real_size.json")
    row = {"card_gb": 12.0, "resolution": 512, "quantization": "nf4", "stored_as": "float32"}
    assert real_size.other_rows(row) == []
    first = {name: row[name] for name in ("card_gb", "resolution", "quantization")}  # of bfloat16 files
    rows = [row, row | {"card_gb": 24.0}, row | {"quantization": "none"}, first]
    real_size.RESULT.write_text(json.dumps({"rows": rows}))
    assert real_size.other_rows(row) == rows[1:]
    assert real_size.other_rows(row | {"stored_as": "bfloat16"}) == rows[:3]


def test_pictures_of_the_example_are_as_large_as_they_are_wanted(tmp_path):
    examples = read_examples(enlarge(EXAMPLE, tmp_path / "pictures", 256), minimum_side=256).examples
    assert len(examples) == 6
    assert all(example.captions for example in examples)


# --- what a card is asked


@pytest.mark.process
def test_the_script_for_a_card_tells_row_by_row_what_a_tiny_base_took(monkeypatch):
    monkeypatch.setenv("HF_HOME", "")  # which the script changes
    monkeypatch.setattr(card, "TINY_CARDS", (12,))
    told = []
    card.measure_all("klein-4b", True, lambda hardware, rows: told.append(rows))
    names = [[row["name"] for row in rows] for rows in told]
    order = [card.UNLIMITED, card.RELEASED, "12 GB"]
    assert names[:3] == [order[:1], order[:2], order] and all(each == order for each in names[3:])
    assert not any("failed" in row for row in told[-1])
    unlimited, released, limited = told[-1]
    for row in (unlimited, limited):
        assert row["check"].startswith("The LoRA file is good") and row["warnings"] == []
        assert row["plan_at_the_end"] == row["memory_plan"]
        assert row["simulated_gb"]["reserved"].keys() == row["planned_gb"].keys() == card.PHASES_OF.keys()
    assert len(released["seconds_per_step"]) == card.WARM_UP + card.STEPS
    assert limited["times_unlimited"] == pytest.approx(
        limited["step_seconds"] / unlimited["step_seconds"], abs=1e-3
    )


def row_of(name, seconds, reserved, **more):
    steps = [9.0, seconds, seconds, seconds]
    return {"name": name, "seconds_per_step": steps, "reserved_until_gb": {"training": reserved}, **more}


def test_goals_are_told_by_the_steps_behind_the_warm_up_and_by_the_memory_of_training():
    rows = [
        row_of(card.UNLIMITED, 3.0, 40.0, card_gb=None, context_gb=1.0),
        row_of(card.RELEASED, 4.0, 39.0, card_gb=None),
        row_of("12 GB", 4.2, 11.0, card_gb=12, context_gb=1.0, reserved_gb=11.5),
    ]
    unlimited, released, limited = card.compare(rows, floor_seconds=2.0)
    assert (unlimited["times_the_floor"], unlimited["times_released"]) == (1.5, 0.75)
    assert [words.rpartition(" ")[2] for words in unlimited["goals"]] == ["reached", "reached"]
    assert released["goals"] == []
    assert (limited["times_unlimited"], limited["times_released"]) == (1.4, 1.05)
    # Both with CUDA's own context.
    assert (limited["memory_of_released"], limited["most_gb"]) == (0.3, 12.5)
    assert [words.rpartition(" ")[2] for words in limited["goals"]] == [
        "missed",
        "missed",
        "reached",
        "reached",
    ]
    failed = card.compare([*rows[:1], {"name": "8 GB", "card_gb": 8, "failed": "of memory"}], 2.0)[1]
    assert (failed["step_seconds"], failed["goals"]) == (None, [])
