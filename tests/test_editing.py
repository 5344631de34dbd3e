"""Edits on FLUX.2 klein: from source pictures and an instruction to a result, on tiny random weights."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from dopsd_app.checks.teacher_check import teacher_check
from dopsd_app.checks.verdict import read_check, rows_drawn
from dopsd_app.cli import main
from dopsd_app.config import OBJECTIVES, TrainConfig, load_preset, presets_for
from dopsd_app.data.crops import nearest_bucket
from dopsd_app.data.pictures import Example, read_examples
from dopsd_app.errors import KnownFailure
from dopsd_app.generate import generate
from dopsd_app.hub.model_card import make_card
from dopsd_app.jobs.events import HealthMeasured, LoraChecked, PreviewSaved, StepDone, Warned
from dopsd_app.jobs.runs import create_run, list_runs
from dopsd_app.method.adapters import add_adapters, as_base
from dopsd_app.method.encode import read_pictures, read_sources
from dopsd_app.method.rollout import rollout
from dopsd_app.models.architecture import BY_EYES
from dopsd_app.models.klein_facts import KLEIN, KLEIN_4B
from dopsd_app.models.load import load_base_model
from dopsd_app.models.loaded_model import LoadedModel
from dopsd_app.models.memory_plan import MemoryPlan
from dopsd_app.models.protocol import Pictures
from dopsd_app.planning.cost import step_work
from dopsd_app.planning.machine import Machine
from dopsd_app.planning.memory import reckon
from dopsd_app.planning.plan import make_plan
from dopsd_app.train import choose_prompts, train
from dopsd_app.ui.try_sources import KEPT, NOTHING, find_sources, keep_sources, list_sources
from tests.support.edits import save_pairs
from tests.support.finished_run import finish
from tests.support.pictures import make_picture
from tests.support.tiny_models import save_klein
from tests.support.torn_run import train_and_tear

TOKEN = 16  # pixels of a side
SETTINGS = {
    "steps": 2,
    "rollout_steps": 2,
    "num_inference_steps": 2,
    "batch_size": 2,
    "rank": 2,
    "resolution": 96,
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "preview_every": 2,
    "checkpoint_every": 1,
}


@pytest.fixture(scope="module")
def klein_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-klein")
    save_klein(folder)
    return folder


@pytest.fixture
def config(klein_folder):
    return TrainConfig(base_model=str(klein_folder), **SETTINGS)


@pytest.fixture
def klein(config):
    base_model = load_base_model(config)
    base_model.load_encoders()
    base_model.load_transformer()
    return base_model


def new_run(tmp_path, config, **pairs):
    dataset = read_examples(save_pairs(tmp_path / "pairs", **pairs), minimum_side=64)
    return create_run(tmp_path / "runs", config, dataset)


def events_of(run, kind):
    return [event for event in train(run) if isinstance(event, kind)]


# --- what student and teacher see


@pytest.mark.parametrize("sizes", [[(100, 70)], [(64, 130), (96, 64)], [(1100, 1000)]])
def test_a_rollout_from_sources_visits_the_states_of_the_pipeline(klein, config, sizes):
    sources = [make_picture(number, *size) for number, size in enumerate(sizes)]
    noise = torch.randn(1, 16, 4, 6, generator=torch.Generator().manual_seed(1))
    visited = []
    pipeline = klein.make_pipeline()
    pipeline.set_progress_bar_config(disable=True)

    def keep(pipeline, index, timestep, values):
        visited.append(values["latents"].mT.unflatten(2, (4, 6)).clone())
        return {}

    pipeline(
        prompt="make it blue",
        image=list(sources),
        height=64,
        width=96,
        num_inference_steps=4,
        guidance_scale=KLEIN.guidance,
        latents=noise.clone(),
        output_type="latent",
        callback_on_step_end=keep,
    )
    student = [klein.encode(Pictures(sources=tuple(sources)), "make it blue", "student")]
    add_adapters(klein.transformer, klein.lora_targets, config)
    with as_base(klein.transformer):
        states = [step.latents for step in rollout(klein, student, student, noise, klein.sigmas(4, 64, 96))]
    assert len(visited) == 4
    for state, latents in zip(states[1:], visited, strict=False):
        torch.testing.assert_close(state, latents, atol=1e-5, rtol=0)


def test_the_wanted_result_is_the_last_of_the_teachers_references(klein):
    sources = (make_picture(1, 64, 96), make_picture(2, 128, 64))
    picture = make_picture(0, 64, 64)
    given, roles = Pictures(picture, sources), ("student", "teacher")
    student, teacher = (klein.encode(given, "a dog", role) for role in roles)
    assert [tuple(x.shape[1:]) for x in student.reference_latents] == [(6, 4), (4, 8)]
    assert len(teacher.reference_latents) == 3
    expected = [klein.encode_picture(shown) for shown in (*sources, picture)]
    for latents, own in zip(teacher.reference_latents, expected, strict=True):
        assert latents.equal(own)
    told = "The last reference is the result that is wanted: change the others into it."
    for conditioning, text in ((student, "a dog"), (teacher, f"a dog {told}")):
        features, _ = klein.make_pipeline().encode_prompt([text])
        torch.testing.assert_close(conditioning.prompt_embeds, features[0], atol=1e-5, rtol=1e-5)


def test_a_teacher_with_eyes_sees_the_result_and_starts_from_the_same_sources(config):
    seeing = {"teacher_picture_minimum": 64, "teacher_picture_maximum": 64, "teacher_context": BY_EYES}
    klein = load_base_model(replace(config, **seeing))
    klein.load_encoders()
    sources = (make_picture(1, 64, 96),)
    student = klein.encode(Pictures(sources=sources), "a dog", "student")
    one, other = (klein.encode(Pictures(make_picture(n), sources), "a dog", "teacher") for n in (5, 6))
    for teacher in (one, other):
        assert [x.equal(student.reference_latents[0]) for x in teacher.reference_latents] == [True]
    assert not torch.allclose(one.prompt_embeds, other.prompt_embeds, atol=1e-4)
    alone = klein.encode(Pictures(make_picture(5)), "a dog", "teacher")
    assert not torch.allclose(one.prompt_embeds, alone.prompt_embeds, atol=1e-4)  # it is told what it sees


def test_edits_of_several_sources_in_a_batch_equal_one_by_one(klein):
    given = [(), (make_picture(1, 64, 96),), (make_picture(2, 64, 96), make_picture(3, 64, 64))]
    told = [klein.encode(Pictures(sources=sources), "a dog", "student") for sources in given]
    noise, sigma = torch.randn(3, 16, 4, 4), torch.tensor([0.9, 0.5, 0.1])
    together = klein.predict_velocity(noise, sigma, told)
    alone = [klein.predict_velocity(noise[[n]], sigma[n], [told[n]]) for n in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
    assert (together[0] - klein.predict_velocity(noise[[0]], sigma[0], [told[1]])).abs().max() > 1e-3


def test_a_source_of_the_same_size_is_cropped_as_the_picture_is(config, tmp_path):
    base_model = load_base_model(config)
    sizes = ((150, 96), (96, 96))
    for number, size in enumerate(sizes):
        make_picture(number, *size).save(tmp_path / f"{number}.png")
    one, other = read_sources([tmp_path / "0.png", tmp_path / "1.png"], config, base_model)
    # Of about 96 x 96 pixels, each in its own shape and of whole tokens.
    assert other.size == (96, 96)
    assert one.size != other.size and all(side % TOKEN == 0 for side in one.size)


# --- a run


def size_of(file):
    with Image.open(file) as picture:
        return picture.size


@pytest.mark.process
@pytest.mark.parametrize("context", ["reference", BY_EYES])
def test_a_run_of_edits_ends_with_a_checked_lora_and_resumes_to_the_same_bytes(config, tmp_path, context):
    seeing = {"teacher_picture_minimum": 64, "teacher_picture_maximum": 64, "teacher_context": context}
    config = replace(config, **seeing)
    sizes = ((96, 96), (144, 96), (96, 96), (96, 96))
    whole = new_run(tmp_path, config, sizes=sizes, sources=2)
    events, torn = train_and_tear(whole)
    assert whole.sources == torn.sources == 2
    assert not [event for event in events if isinstance(event, Warned) and event.kind != "health"]
    [checked] = [event for event in events if isinstance(event, LoraChecked)]
    assert checked.passed, checked.summary
    assert bool([event for event in events if isinstance(event, HealthMeasured)]) == (context == BY_EYES)
    saved = [event for event in events if isinstance(event, PreviewSaved) and event.kind != "rollout"]
    assert [event.kind for event in saved[:2]] == ["sources", "samples"] and saved[1].step == 0
    # Source, base and LoRA of each of two prompts are alike; of the second, wider and lower.
    (height, width), side = nearest_bucket(144, 96, 96, TOKEN), 96
    assert width > side > height
    for event in saved:
        assert [size_of(whole.path / file) for file in event.files] == [(side, side), (width, height)]
    again = [event.step for event in train(torn) if isinstance(event, StepDone)]
    assert again[0] > 1 and again[-1] == config.steps
    assert torn.lora_file.read_bytes() == whole.lora_file.read_bytes()


@pytest.mark.process
@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name != "dopsd"])
def test_the_other_objectives_learn_edits_too(config, tmp_path, objective):
    run = new_run(tmp_path, replace(config, objective=objective, steps=1, preview_every=0))
    [checked] = events_of(run, LoraChecked)
    assert checked.passed, checked.summary


def test_a_moved_crop_is_what_the_teacher_sees_and_its_source_moves_with_it(config, tmp_path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    for name, colour in (("0", "red"), ("0_source", "blue")):
        picture = Image.new("RGB", (400, 100), "white")
        picture.paste(colour, (200, 0, 400, 100))
        picture.save(folder / f"{name}.png")
    example = Example(folder / "0.png", ("a",), (folder / "0_source.png",))

    def seen(focus):
        pictures = read_pictures(replace(example, focus=focus), config, LoadedModel(config).base_model)
        shown = (pictures.training_picture, *pictures.sources)
        return [picture.getpixel((picture.width // 2, picture.height // 2)) for picture in shown]

    assert seen((0, 0)) == [(255, 255, 255)] * 2
    assert seen((1, 0)) == [(255, 0, 0), (0, 0, 255)]


def test_previews_start_from_the_examples_pictures_in_turn(config, tmp_path):
    examples = read_examples(save_pairs(tmp_path / "pairs"), minimum_side=64).examples
    prompts, shown = choose_prompts(config, examples, scored=False)
    # The same instruction tells something of each picture.
    assert [prompt.sources for prompt in prompts] == [example.source_images for example in examples[:shown]]
    assert shown == len(prompts) > 1
    asked, _ = choose_prompts(replace(config, preview_prompts=["a", "b", "c", "d", "e"]), examples, False)
    assert [prompt.text for prompt in asked] == ["a", "b", "c", "d", "e"]
    assert asked[4].sources == examples[0].source_images and asked[1].sources == examples[1].source_images


def test_the_teacher_check_shows_what_an_edit_starts_from(config, tmp_path):
    examples = read_examples(save_pairs(tmp_path / "pairs"), minimum_side=64).examples
    (tmp_path / "check").mkdir()
    list(teacher_check(LoadedModel(config), config, examples, tmp_path / "check"))
    rows = rows_drawn(tmp_path / "check")
    assert [[file.name for file in row] for row in rows[:1]] == [
        ["0_source.webp", "0_crop.webp", "0_student.webp", "0_teacher.webp"]
    ]
    assert len(read_check(tmp_path / "check").rows) == len(rows) == 4


# --- what it draws


@pytest.mark.process
def test_it_is_trained_and_drawn_from_the_command_line(config, tmp_path, capsys):
    folder = save_pairs(tmp_path / "pairs")
    settings = [f"{name}={str(value).lower()}" for name, value in SETTINGS.items()]
    where = ["--runs", str(tmp_path / "runs")]
    base = f"base_model={config.base_model}"
    assert main(["train", "--images", str(folder), *where, "--set", *settings, base]) == 0
    [run] = list_runs(tmp_path / "runs")
    assert run.status.state == "finished" and run.sources == 1
    make_picture(7, 130, 70).save(tmp_path / "mine.jpg")
    drawn = tmp_path / "drawn"
    ask = ["generate", run.id, *where, "--prompt", "make it blue", "--base-too", "--out", str(drawn)]
    assert main([*ask, "--source", str(tmp_path / "mine.jpg")]) == 0
    files = sorted(drawn.glob("*.png"))
    assert [file.name for file in files] == [
        "1-make-it-blue-from-mine_0.png",
        "1-make-it-blue-from-mine_0_base.png",
    ]
    with Image.open(files[0]) as picture:
        assert picture.size[0] > picture.size[1]  # the shape of what it starts from
    assert files[0].read_bytes() != files[1].read_bytes()
    capsys.readouterr()
    assert main(ask) == 2
    assert "was trained to edit pictures: give it the source picture" in capsys.readouterr().err
    assert main([*ask, "--source", *[str(tmp_path / "mine.jpg")] * 5]) == 2
    assert "at most, not from 5" in capsys.readouterr().err
    assert main([*ask, "--source", str(tmp_path / "none.png")]) == 2
    assert "none.png cannot be read as a picture" in capsys.readouterr().err


@pytest.mark.process
def test_a_picture_is_what_the_official_pipeline_makes_of_its_source(config, tmp_path):
    run = new_run(tmp_path, replace(config, preview_every=0))
    list(train(run))
    source = run.sources_of(1)[0]
    [_, base] = generate(run, ["make it blue"], [3], out=tmp_path / "out", base_too=True, sources=[source])
    model = load_base_model(config)
    model.load_encoders()
    model.load_transformer()
    pipeline = model.make_pipeline()
    with Image.open(source) as picture:
        expected = pipeline(
            prompt="make it blue",
            image=picture.convert("RGB"),
            num_inference_steps=2,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(3),
        ).images[0]
    with Image.open(base) as drawn:
        differences = torch.tensor(list(drawn.tobytes())).int() - torch.tensor(list(expected.tobytes())).int()
    assert drawn.size == expected.size == (96, 96)
    assert differences.abs().max() <= 1


def test_a_base_that_cannot_edit_is_told_before_anything_is_loaded(tmp_path, capsys):
    folder = save_pairs(tmp_path / "pairs", sizes=((64, 64),) * 4)
    where = ["--runs", str(tmp_path / "runs")]
    assert main(["train", "--images", str(folder), *where]) == 2
    assert "source pictures to start from, and pocket-turbo cannot edit" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_check_of_the_teacher_is_refused_where_the_base_cannot_edit(tmp_path):
    examples = read_examples(save_pairs(tmp_path / "pairs"), minimum_side=64).examples
    pocket = TrainConfig(resolution=64)
    with pytest.raises(KnownFailure, match="pocket-turbo cannot edit pictures"):
        list(teacher_check(LoadedModel(pocket), pocket, examples, tmp_path))


@pytest.mark.process
def test_a_lora_of_pictures_may_start_from_one_too(config, tmp_path):
    pairs = save_pairs(tmp_path / "pairs")
    for file in pairs.glob("*_source.png"):
        file.rename(tmp_path / file.name)
    dataset = read_examples(pairs, minimum_side=64)
    run = create_run(tmp_path / "runs", replace(config, preview_every=0, steps=1), dataset)
    list(train(run))
    assert run.sources == 0
    source = [tmp_path / "0_source.png"]
    assert [file.exists() for file in generate(run, ["it"], [0], out=tmp_path / "a", sources=source)] == [
        True
    ]
    assert "text-to-image" in str(make_card(run, repo_id="ann/blue"))


def test_what_a_lora_is_tried_from_is_kept_with_the_run(config, tmp_path):
    run = new_run(tmp_path, config)
    assert list_sources(run)[0] == ("Source of training picture 1", "own-1") and len(list_sources(run)) == 4
    make_picture(70, 80, 64).save(tmp_path / "mine.jpg")
    kept = [keep_sources(run, [tmp_path / "mine.jpg"]) for _ in range(KEPT + 1)]
    [file] = find_sources(run, kept[-1])
    with Image.open(file) as picture:
        assert (picture.format, picture.size) == ("PNG", (80, 64))
    assert list_sources(run)[0] == ("Your upload", kept[-1])
    for gone in (kept[0], "own-9", "own-x", "upload-../dataset", "drawing-x", "x"):
        with pytest.raises(KnownFailure):
            find_sources(run, gone)
    assert find_sources(run, NOTHING) == []
    with pytest.raises(KnownFailure, match="at most, not from 5"):
        keep_sources(run, [tmp_path / "mine.jpg"] * 5)


# --- what is told of it


def test_the_plan_counts_sources(tmp_path):
    config = replace(TrainConfig(base_model="flux2-klein-4b"), **load_preset("klein-4b-edit").settings)
    none, two = (KLEIN_4B.sizes_for(config, sources) for sources in (0, 2))
    # 512 x 512 pixels are 32 x 32 tokens, for each of the sources and for the teacher's own reference.
    assert (none.student_tokens(512).reference, two.student_tokens(512).reference) == (0, 2048)
    assert two.teacher_tokens(512, "auto").reference == 3072
    assert two.teacher_tokens(512, BY_EYES).reference == 2048
    assert two.student_tokens(1536).reference == 2 * 4096  # the pipeline takes them no larger
    plan = MemoryPlan()
    assert step_work(config, two, plan) > 2 * step_work(config, none, plan)
    assert reckon(config, two, plan, True).training > reckon(config, none, plan, True).training
    saved = two.conditioning_bytes(512, "auto") - none.conditioning_bytes(512, "auto")
    assert saved == 4 * 128 * 2 * 2048  # of both, in float32
    machine = Machine((), False, 2**33, 2**33, 2)
    pocket = TrainConfig()
    plan = make_plan(pocket, pictures=4, sources=1, runs_dir=tmp_path, machine=machine)
    assert any("pocket-turbo (built in) cannot edit" in problem for problem in plan.problems), plan.problems


def test_the_card_says_what_it_takes(config, tmp_path):
    run = finish(new_run(tmp_path, config, sources=2))
    card = make_card(run, repo_id="ann/blue")
    assert card.data.pipeline_tag == "image-to-image"
    text = str(card)
    assert 'image=[load_image("source_1.png"), load_image("source_2.png")],' in text
    assert "from diffusers.utils import load_image\n\nbase = " in text
    assert "height=" not in text  # as the source's
    assert "4 pictures of about" in text


def test_presets_for_edits_come_behind_those_for_pictures():
    for size in ("4b", "9b"):
        names = [preset.name for preset in presets_for(f"flux2-klein-{size}")]
        assert names[:3] == [f"klein-{size}-{kind}" for kind in ("subject", "style", "edit")]


def test_a_folder_of_pairs_gets_the_preset_for_edits(tmp_path, capsys, monkeypatch):
    folder = save_pairs(tmp_path / "pairs", sizes=((256, 256),) * 4)
    asked = []
    monkeypatch.setattr("dopsd_app.planning.plan.check_base", lambda config: asked.append(config))

    def stop(config, **counts):
        raise KnownFailure(json.dumps(counts, default=str))

    monkeypatch.setattr("dopsd_app.planning.plan.make_plan", stop)
    arguments = ["train", "--images", str(folder), "--runs", str(tmp_path / "runs")]
    assert main([*arguments, "--set", "base_model=flux2-klein-4b"]) == 2
    assert asked[0].steps == load_preset("klein-4b-edit").settings["steps"]
    assert '"sources": 1' in capsys.readouterr().err


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_it_draws_from_a_source_in_bfloat16_too(config, quantization):
    settings = {"precision": "bfloat16", "quantization": quantization}
    model = LoadedModel(replace(config, **settings))
    [conditioning] = model.encode(["make it blue"])
    model.load_transformer()
    sources = [make_picture(1, 128, 96), make_picture(2, 96, 96)]
    first, other = (model.draw(conditioning, config, 0, sources=given) for given in (sources, sources[:1]))
    assert first.size == other.size == (128, 96)
    assert first.tobytes() != other.tobytes()
