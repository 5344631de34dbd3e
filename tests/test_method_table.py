"""The methods' table: what its columns mean, how settings are chosen, and that rivals do what they say."""

import json
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import jobs, method, method_picture, rows, scores, tables
from benchmarks.concepts import NeutralData, captions_of, concepts_of, encode_concept, encode_neutral
from benchmarks.levers import LEVERS, Walk
from benchmarks.methods import METHODS, PAPERS_SETTINGS, Method, Training, products, train
from benchmarks.record import RESULTS
from benchmarks.rows import CURVE_BUDGETS, Job, best_settings, product
from dopsd_app.checks.judge.world import (
    BACKGROUND_WORDS,
    Scene,
    draw,
    is_held_out,
    random_concept,
    random_scene,
)
from dopsd_app.config import make_config
from dopsd_app.method.adapters import adapter_weights
from dopsd_app.method.randomness import draw_examples
from dopsd_app.method.step import draw_batch, micro_batches, prepare
from dopsd_app.models.load import load_base_model
from pocket.captions import asked_of

pytestmark = [
    pytest.mark.benchmark,
    # torch's compiler, as it is imported, uses what torch itself calls old.
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method`"),
]


def test_development_and_test_concepts_are_held_out_and_apart():
    development, test = concepts_of("development"), concepts_of("test")
    assert (len(development), len(test)) == (5, 10)
    assert not set(development) & set(test)
    assert all(is_held_out(concept) for concept in development + test)


@pytest.mark.parametrize("number", range(10))
def test_no_prompt_of_the_test_was_trained_on(number):
    captions, asked = captions_of("test", number)
    assert len(captions) == 6
    assert len(asked) > 30
    assert not set(captions) & {caption for _, caption in asked}


def test_captions_leave_something_unsaid_and_only_what_they_say_is_followed(world):
    _, data, _ = world
    assert {caption.count("zorp on a") for caption in data.captions} == {0, 1}  # the place said, or not
    shown = [draw(data.concept, Scene(scene.background, 1, scene.size)) for scene in data.scenes]
    asked = [
        asked_of(caption, data.concept, scene)
        for caption, scene in zip(data.captions, data.scenes, strict=True)
    ]
    missed = sum("place" in said and scene.place != 1 for said, scene in zip(asked, data.scenes, strict=True))
    found = scores.concept_scores([Image.fromarray(picture) for picture in shown], data)
    assert found["following"] == pytest.approx(1 - missed / sum(map(len, asked)), abs=0.02)


def test_copying_is_one_for_the_training_pictures_and_zero_for_new_ones():
    training = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    real = torch.tensor([[0.0, 4.0], [10.0, 2.0]])  # 3 away on the mean
    assert scores.copying(training, real, training) == 1
    assert scores.copying(real, real, training) == 0
    assert scores.copying(torch.tensor([[0.0, 1.0], [10.0, 2.0]]), real, training) == 0.5
    assert scores.copying(training[:0], real[:0], training) is None


def test_only_pictures_that_show_the_concept_tell_of_copying(world):
    _, data, _ = world
    data = replace(data, scenes=data.scenes[::6], captions=data.captions[::6])
    other = random_concept(np.random.default_rng(5))
    wrong = [Image.fromarray(draw(other, scene)) for scene in data.scenes]
    assert scores.concept_scores(wrong, data)["copying"] is None
    assert scores.concept_scores([data.pictures[0], *wrong[1:]], data)["copying"] == pytest.approx(1)
    assert scores.concept_scores([data.flawless[0], *wrong[1:]], data)["copying"] == pytest.approx(1)


def test_a_takeover_is_the_share_of_neutral_pictures_that_show_the_concept():
    rng = np.random.default_rng(3)
    learned, *others = (random_concept(rng) for _ in range(4))
    scenes = [random_scene(rng) for _ in others]
    captions = tuple(f"creature on a {BACKGROUND_WORDS[scene.background]} background" for scene in scenes)
    neutral = NeutralData(captions, tuple(others), tuple(scenes), ())
    before, unlike = ([Image.fromarray(draw(o, random_scene(rng))) for o in others] for _ in range(2))
    after = [Image.fromarray(draw(learned, scenes[0])), *before[1:]]
    found = scores.neutral_scores(after, before, unlike, neutral, learned)
    assert found["takeover"] == pytest.approx(1 / 3)
    assert found["drift"] > 0
    assert scores.neutral_scores(before, before, unlike, neutral, learned)["drift"] == 0


def row(part, name, concept, rate, passes, fidelity, seed=0, budgets=(300, 600, 1200)):
    job = Job(part, name, concept, seed, rate, budgets)
    values = {"fidelity": fidelity, "following": 0.5, "quality": 1.0}
    line = {"base": "b", "job": vars(job), "passes": passes, "steps": 1, "seconds": 2.0, "scores": values}
    return json.dumps(line) + "\n"


@pytest.fixture
def lines_file(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "ROWS", tmp_path / "rows.jsonl")
    monkeypatch.setattr(rows, "base_mark", lambda: "b")
    return rows.ROWS


def sweep(name, fidelities, rates=(1e-3, 3e-3, 1e-2, 3e-4)):
    """A method's sweep: what is not given has a fidelity of 0."""
    return [
        row("sweep", name, concept, rate, budget, fidelities.get((rate, budget, concept), 0.0))
        for rate in rates
        for budget in rows.BUDGETS
        for concept in range(5)
    ]


def test_the_settings_with_the_best_mean_product_win_and_other_bases_do_not_count(lines_file):
    found = {
        (1e-3, 1200, 0): 0.9,
        (1e-3, 1200, 1): 0.1,
        **{(3e-3, 300, concept): 0.21 for concept in range(5)},
    }
    lines = sweep("sft", found)
    lines += [row("sweep", "sft", 0, 1e-3, 1204, 1.0).replace('"base": "b"', '"base": "other"')]
    lines += [row("test", "sft", 0, 1e-4, 604, 1.0)]
    lines_file.write_text("".join(lines))
    assert best_settings("sft") == (3e-3, 300)  # .21 on the mean, against .2
    assert product({"fidelity": 0.5, "following": 0.5, "quality": 0.5, "drift": 9.0}) == 0.125


def test_the_third_learning_rate_lies_beyond_the_better_one(lines_file):
    lines_file.write_text("".join(sweep("sft", {(1e-3, 300, 0): 0.02}, rates=(1e-3, 3e-3))))
    assert rows.further_rate("sft") == 3e-4
    with pytest.raises(SystemExit, match="sft's sweep"):
        best_settings("sft")
    lines_file.write_text("".join(sweep("sft", {(3e-3, 300, 0): 0.03}, rates=(1e-3, 3e-3))))
    assert rows.further_rate("sft") == 1e-2
    found = {(3e-3, 300, 0): 0.03, (1e-2, 300, 1): 0.04, (3e-4, 300, 1): 0.9}  # the last is no third
    lines_file.write_text("".join(sweep("sft", found)))
    assert best_settings("sft") == (1e-2, 300)


@pytest.mark.parametrize("missing", [0, 7])
def test_settings_are_not_chosen_before_the_sweep_is_finished(lines_file, missing):
    lines = sweep("sft", {})
    lines_file.write_text("".join(lines[:missing] + lines[missing + 1 :]))
    with pytest.raises(SystemExit, match="sft's sweep"):
        best_settings("sft")


def test_the_table_means_over_concepts_and_pairs_them_with_the_recipes(lines_file):
    best = {(1e-3, 1200, concept): 1.0 for concept in range(5)}
    lines = [*sweep("sft", best), *sweep("dopsd_ema", best)]
    found = {"sft": ((0.2, 0.4), (0.8, 1.0)), "dopsd_ema": ((0.4, 0.6), (0.9, 1.0))}
    for name, concepts in found.items():
        for concept, values in enumerate(concepts):
            for seed, fidelity in enumerate(values):
                lines.append(row("test", name, concept, 1e-3, 1200, fidelity, seed, budgets=(1200,)))
    lines += [row("test", "sft", 0, 3e-3, 1200, 1.0, budgets=(1200,))]  # settings that are not the best
    lines_file.write_text("".join(lines))
    table = tables.make_table("test")
    assert table["sft"]["runs"] == 4
    # Means of .3 and .9: their deviation is .424, and Student's factor for two values is 12.7.
    fidelity = table["sft"]["scores"]["fidelity"]
    assert fidelity["mean"] == pytest.approx(0.6)
    assert fidelity["interval_95"] == pytest.approx(12.706 * 0.3, abs=1e-3)
    # Half of the fidelity, .2 and .05 apart.
    assert table["sft"]["recipe_ahead_by"]["product"]["mean"] == pytest.approx((0.1 + 0.025) / 2)
    assert table["dopsd_ema"]["recipe_ahead_by"]["product"] == {"mean": 0, "interval_95": 0}
    head, _, *lines = (line.strip("| ").split(" | ") for line in tables.as_markdown(table).splitlines())
    assert [line[:2] for line in lines] == [["SFT", "1e-3, 1,200"], ["D-OPSD, the paper's", "1e-3, 1,200"]]
    assert "quality at 32 steps" not in head  # nobody looked
    assert dict(zip(head, lines[0][1:], strict=False))["all six"] == "0.60 ± 3.81"


def test_the_sweeps_own_table_has_the_settings_that_won(lines_file):
    lines = [*sweep("sft", {(1e-3, 600, 0): 1.0}), *sweep("dopsd_ema", {(3e-3, 1200, 1): 0.5})]
    lines_file.write_text("".join(lines))
    table = tables.make_table("sweep")
    assert (table["sft"]["settings"], table["dopsd_ema"]["settings"]) == ((1e-3, 600), (3e-3, 1200))
    assert [table[name]["runs"] for name in table] == [5, 5]
    assert table["sft"]["scores"]["fidelity"]["mean"] == pytest.approx(0.2)


def test_a_score_that_nothing_tells_of_is_left_out_of_the_mean():
    runs = {(0, 0): {"copying": 0.5}, (0, 1): {"copying": None}, (1, 0): {}, (2, 0): {"copying": 0.7}}
    assert tables.means_by_concept(runs, "copying") == {0: 0.5, 2: 0.7}
    assert tables.mean_and_interval([0.5]) == {"mean": 0.5, "interval_95": None}
    assert tables.mean_and_interval([]) is None


def test_a_seed_counts_once_every_method_has_it_on_all_concepts(lines_file):
    best = {(1e-3, 1200, concept): 1.0 for concept in range(5)}
    lines = [*sweep("sft", best), *sweep("dopsd_ema", best)]

    def add(name, concept, seed, fidelity):
        lines.append(row("test", name, concept, 1e-3, 1200, fidelity, seed, budgets=(1200,)))
        lines_file.write_text("".join(lines))

    for concept in range(2):
        add("sft", concept, 0, 0.2)
        add("dopsd_ema", concept, 0, 0.4)
        add("dopsd_ema", concept, 1, 1.0)
    add("sft", 0, 1, 0.6)
    table = tables.make_table("test")
    assert [table[name]["runs"] for name in ("sft", "dopsd_ema")] == [2, 2]
    assert table["dopsd_ema"]["scores"]["fidelity"]["mean"] == pytest.approx(0.4)
    assert table["sft"]["recipe_ahead_by"]["fidelity"]["mean"] == pytest.approx(0.2)
    add("sft", 1, 1, 0.6)
    table = tables.make_table("test")
    assert [table[name]["runs"] for name in ("sft", "dopsd_ema")] == [4, 4]
    assert table["sft"]["scores"]["fidelity"]["mean"] == pytest.approx(0.4)
    assert table["sft"]["recipe_ahead_by"]["fidelity"]["mean"] == pytest.approx(0.3)


def test_what_many_steps_gain_is_of_the_same_run_and_stands_in_the_table_of_steps():
    line = {"fidelity": 0.5, "following": 1, "quality": 0.8, "copying": 0.0}
    found = tables._scores({"scores": line | {"quality_32_steps": 0.85, "fidelity_1_steps": 0.25}})
    assert found["gain_at_32_steps"] == pytest.approx(0.05)
    assert "gain_at_32_steps" not in tables._scores({"scores": line})
    mean = {"mean": 0.05, "interval_95": 0.01}
    table = {"sft": {"settings": (1e-3, 600), "scores": {"gain_at_32_steps": mean, "quality": mean}}}
    head, _, row = tables.steps_as_markdown(table).splitlines()
    assert head == "|  | gained at 32 steps |"
    assert row == "| SFT | 0.05 ± 0.01 |"


def test_what_is_measured_once_for_all_concepts_has_no_interval():
    runs = {(0, 0): {"drift": 0.5, "fidelity": 0.1}, (1, 0): {"drift": 0.5, "fidelity": 0.3}}
    assert tables._over_concepts("parent", runs, "drift") == {"mean": 0.5, "interval_95": None}
    assert tables._over_concepts("sft", runs, "drift") == {"mean": 0.5, "interval_95": 0.0}
    assert tables._over_concepts("parent", runs, "fidelity")["interval_95"] > 0


def test_a_few_lucky_pictures_tell_nothing_of_copies():
    few, enough = ({"fidelity": f, "following": 1, "quality": 1, "copying": 0.9} for f in (0.09, 0.1))
    assert tables._scores({"scores": few})["copying"] is None
    assert tables._scores({"scores": enough})["copying"] == 0.9


def test_a_method_goes_with_its_teacher_where_it_ends_as_high_creature_by_creature(lines_file):
    found = {
        "teacher": (0.2, 0.4, 0.6),
        "dopsd_ema": (0.1, 0.3, 0.5),
        "sft": (0.5, 0.1, 0.3),
        "base": (0, 0, 0),
    }
    lines = [*sweep("sft", {(1e-3, 1200, 0): 1.0}), *sweep("dopsd_ema", {(1e-3, 1200, 0): 1.0})]
    for name, fidelities in found.items():
        budget = 0 if name in rows.UNTRAINED else 1200
        lines += [
            row("test", name, concept, 1e-3, budget, fidelity, budgets=(budget,))
            for concept, fidelity in enumerate(fidelities)
        ]
    lines_file.write_text("".join(lines))
    table = tables.make_table("test")
    assert {name: table[name]["goes_with_teacher"] for name in found} == {
        "teacher": 1,
        "dopsd_ema": 1,
        "sft": -0.5,  # (.2, -.2, 0) against (-.2, 0, .2)
        "base": None,
    }
    assert table["sft"]["products"] == {0: 0.25, 1: 0.05, 2: 0.15}  # following is .5
    # In fidelity the recipe is ahead of SFT by -.4, .2, .2: .12 / (.08 * .24) ** .5. Of the teacher by -.1.
    assert {name: table[name]["lead_goes_with_teacher"] for name in found} == {
        "teacher": None,
        "dopsd_ema": None,
        "sft": 0.866,
        "base": 1.0,
    }
    assert table["sft"]["recipe_ahead_by"]["fidelity"]["mean"] == 0


@pytest.fixture(scope="module")
def world():
    config = replace(make_config(PAPERS_SETTINGS), rank=4, learning_rate=1e-3)
    base_model = load_base_model(config)
    base_model.load_encoders()
    base_model.load_transformer()
    priors = encode_neutral(base_model, "prior")
    return config, encode_concept(base_model, "test", 0), priors


def test_a_method_trains_on_the_weights_that_its_name_tells():
    rounded = {name: method.load_learner(*method.settings_of(name)) for name in ("dopsd_ema", "dopsd_nf4")}
    layers = {
        name: {type(layer).__name__ for layer in base_model.transformer.modules()}
        for name, base_model in rounded.items()
    }
    assert "Nf4Linear" in layers["dopsd_nf4"] and "Nf4Linear" not in layers["dopsd_ema"]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_the_lora_within_its_passes(world, name, monkeypatch):
    monkeypatch.setattr("dopsd_app.method.objectives.made.SAMPLES", 6)
    config, data, priors = world
    chosen = METHODS[name]
    config = replace(config, batch_size=1, micro_batch=1, **dict(chosen.settings))
    base_model = load_base_model(config)
    base_model.load_transformer()
    priors = replace(priors, prompts=priors.prompts[:6])
    training = Training(base_model, config, data, priors)
    draws_first = config.objective in ("dreambooth", "pso", "sft_on_samples")
    made = 6 * 4 if draws_first else 0  # six pictures of four steps
    done = train(chosen, training, (made + 8, made + 16))
    first = next(done)
    before = {k: weight.clone() for k, weight in adapter_weights(base_model.transformer, "student").items()}
    base_model.predict_velocity(data.latents[:1], torch.tensor(0.5), [data.prompts[0]])
    assert next(done) == 2 * first
    assert training.passes == made + 16
    after = adapter_weights(base_model.transformer, "student")
    assert any(not weight.equal(after[key]) for key, weight in before.items())


def begin(world, **settings):
    """A method's objective on a model of its own, its material, and its losses of the steps from 1 on."""
    config, data, priors = world
    config = replace(config, **settings)
    base_model = load_base_model(config)
    base_model.load_transformer()
    prepare(base_model, config)
    training = Training(base_model, config, data, priors)
    objective = products(training)

    def losses(steps):
        for step in range(1, steps + 1):
            (drawn,) = micro_batches(config, data.examples, step)
            yield list(objective.losses(draw_batch(config, data.examples, step, drawn), step))

    return training, objective, losses


def test_a_prior_picture_is_not_tied_to_one_sigma(world, monkeypatch):
    training, objective, losses = begin(world, objective="dreambooth")
    told, predict = [], training.base_model.predict_velocity

    def listen(latents, sigma, prompts):
        told.extend(zip([id(prompt) for prompt in prompts], sigma.tolist(), strict=True))
        return predict(latents, sigma, prompts)

    training.base_model.predict_velocity = listen
    with torch.no_grad():
        list(losses(12))
    places = {id(picture.prompt): place for place, picture in enumerate(objective.priors)}
    pairs = np.array([(places[prompt], sigma) for prompt, sigma in told if prompt in places])
    assert len(pairs) == 48
    assert abs(np.corrcoef(pairs.T)[0, 1]) < 0.5


def test_pso_compares_a_picture_with_the_bases_own_from_one_noise_each_pair_at_its_own_sigma(
    world, monkeypatch
):
    monkeypatch.setattr("dopsd_app.method.objectives.made.SAMPLES", 6)
    training, objective, losses = begin(world, objective="pso")
    data, config = training.data, training.config
    own = torch.stack([picture.latents for picture in objective.own])
    seen, predict = [], training.base_model.predict_velocity

    def listen(latents, sigma, prompts):
        assert prompts[:4] == prompts[4:]
        seen.append((latents.chunk(2), sigma.chunk(2)))
        return predict(latents, sigma, prompts)

    training.base_model.predict_velocity = listen
    with torch.no_grad():
        list(losses(6))
    few = set(training.base_model.sigmas(config.rollout_steps, 64, 64)[:-1].tolist())
    for step, ((better, worse), (sigma, same)) in enumerate(seen, 1):
        assert sigma.equal(same)
        drawn, level = draw_examples(config.seed, step, 4, 6), sigma[:, None, None, None]
        apart = (1 - level) * (data.latents[drawn] - own[drawn])
        assert torch.allclose(better - worse, apart, atol=1e-5)
    assert set(torch.cat([sigma for _, (sigma, _) in seen]).tolist()) == few
    assert any(len(set(sigma.tolist())) > 1 for _, (sigma, _) in seen)


def test_levers_are_compared_by_the_passes_from_which_they_keep_the_recipes_score(lines_file):
    scores = {
        "dopsd_ema": {1e-3: (0, 0, 0.2, 0.3, 0.4, 0.6), 3e-3: (0, 0, 0, 0, 0.1, 0.2)},
        "fast": {1e-3: (0.1, 0.2, 0.4, 0.6, 0.7, 0.8)},
        "brittle": {1e-3: (0.9, 0.9, 0.9, 0.1, 0.1, 0.9)},
        "never": {1e-3: (0.9, 0.9, 0.9, 0.9, 0.9, 0.1)},
    }
    lines = sweep("dopsd_ema", {(1e-3, 1200, concept): 1.0 for concept in range(5)})
    lines += [
        row("levers", name, 0, rate, budget + 10, fidelity, budgets=CURVE_BUDGETS)
        for name, rates in scores.items()
        for rate, values in rates.items()
        for budget, fidelity in zip(CURVE_BUDGETS, values, strict=True)
    ]
    lines_file.write_text("".join(lines))
    table = tables.make_levers_table("levers")
    # Of half the fidelities, .95 of .3: .285. They were looked at 10 passes late.
    assert {name: line["passes_to_recipes_score"] for name, line in table.items()} == {
        "dopsd_ema, learning rate 0.001": 910 + 255,  # 910: .2, 1210: .3
        "dopsd_ema, learning rate 0.003": None,
        "fast, learning rate 0.001": 460 + 128,  # 460: .2, 610: .3
        "brittle, learning rate 0.001": 910 + 176,  # 910: .05, 1210: .45
        "never, learning rate 0.001": None,
    }
    ahead = {name: line["ahead_of_recipe"]["mean"] for name, line in table.items()}
    # Five looks from 300 on: fast is .1, .1, .15, .15 and .1 ahead.
    assert ahead["fast, learning rate 0.001"] == pytest.approx(0.12)
    assert ahead["dopsd_ema, learning rate 0.001"] == 0
    assert table["fast, learning rate 0.001"]["score"][1210] == 0.4
    # Half of .6 after 600 passes, against half of .6 after 1,200.
    assert table["fast, learning rate 0.001"]["at_half_ahead_of_recipes_end"]["mean"] == pytest.approx(0)
    assert table["dopsd_ema, learning rate 0.001"]["at_half_ahead_of_recipes_end"]["mean"] == pytest.approx(
        -0.15
    )


def test_a_lever_that_was_not_run_on_all_that_the_recipe_was_is_left_out(lines_file):
    lines = sweep("dopsd_ema", {(1e-3, 1200, concept): 1.0 for concept in range(5)})
    for name, concepts in {"dopsd_ema": (0, 1), "K = 1": (0, 1), "K = 2": (0,)}.items():
        lines += [
            row("levers", name, concept, 1e-3, 1200, 0.5, budgets=CURVE_BUDGETS[-1:]) for concept in concepts
        ]
    lines_file.write_text("".join(lines))
    named = [name.split(",")[0] for name in tables.make_levers_table("levers")]
    assert named == ["dopsd_ema", "K = 1"]


def test_levers_are_pulled_at_the_recipes_best_learning_rate(lines_file):
    lines_file.write_text("".join(sweep("dopsd_ema", {(3e-3, 1200, 0): 1.0})))
    pulled = jobs.lever_jobs(["dopsd_ema", "K = 1"])
    rates = [(job.method, job.learning_rate) for job in pulled if job.concept == 0]
    assert rates == [("dopsd_ema", 1e-3), ("dopsd_ema", 3e-3), ("dopsd_ema", 1e-2), ("K = 1", 3e-3)]
    assert {job.concept for job in pulled} == set(range(5))


def test_longer_runs_are_compared_at_their_own_rate_and_passes(lines_file):
    found = {
        ("dopsd_ema", 1e-3): (0.2, 0.4, 0.6),
        ("dopsd_ema", 3e-3): (0.7, 0.8, 0.9),
        ("sft", 1e-3): (0.4, 0.5, 0.1),
        ("pso", 1e-3): (0.4, 0.5, 0.1),
    }
    lines_file.write_text(
        "".join(
            row("long", name, concept, rate, budget, fidelity + concept / 100, budgets=rows.LONG_BUDGETS)
            for (name, rate), values in found.items()
            for budget, fidelity in zip(rows.LONG_BUDGETS, values, strict=True)
            for concept in range(2)
            if (name, concept) != ("pso", 1)
        )
    )
    table = tables.make_long_table("long")
    assert list(table) == [  # PSO has not been run on all of them
        "dopsd_ema, learning rate 0.001",
        "dopsd_ema, learning rate 0.003",
        "sft, learning rate 0.001",
    ]
    sft = table["sft, learning rate 0.001"]
    assert [looks["recipe_ahead_by"]["mean"] for looks in sft.values()] == [-0.1, -0.05, 0.25]
    assert [sft[look]["risen_by"]["mean"] for look in (2400, 4800)] == [0.05, -0.15]
    assert sft[1200]["scores"]["fidelity"]["mean"] == 0.405
    assert sft[4800]["products"] == {0: 0.05, 1: 0.055}
    assert table["dopsd_ema, learning rate 0.003"][4800]["recipe_ahead_by"]["mean"] == 0
    assert "| SFT | 1e-3, 4,800 |" in tables.long_as_markdown(table)


def test_longer_runs_have_each_rates_methods_on_the_development_concepts():
    asked = jobs.long_jobs()
    assert len(asked) == (4 + 2) * 5
    assert {job.budgets for job in asked} == {(1200, 2400, 4800)}
    assert {job.method for job in asked if job.learning_rate == 3e-3} == {"sft", "dopsd_ema"}


def test_the_test_has_each_method_with_what_won_and_the_untrained_on_every_concept_and_seed(lines_file):
    lines_file.write_text("".join(sweep("dopsd_ema", {(3e-3, 600, 0): 1.0})))
    asked = jobs.test_jobs(["dopsd_ema", "dopsd_nf4"])  # NF4 has no sweep of its own
    assert len(asked) == (2 + 3) * 10 * 4
    assert {(job.method, job.learning_rate, job.budgets) for job in asked if job.budgets != (0,)} == {
        (name, 3e-3, (600,)) for name in ("dopsd_ema", "dopsd_nf4")
    }
    assert [job.seed for job in asked] == sorted(job.seed for job in asked)


def test_a_step_before_the_clock_starts_changes_nothing_in_what_is_trained(world, monkeypatch):
    _, data, priors = world
    monkeypatch.setattr(method, "concept_data", lambda part, number: data)
    monkeypatch.setattr(method, "neutral_world", lambda: SimpleNamespace(priors=priors))
    trained = []
    for warm_up in (method.warm_up.__wrapped__, lambda name: None):
        monkeypatch.setattr(method, "warm_up", warm_up)
        base_model, _ = next(method.trained(Job("test", "dopsd_fast", 0, 1, 1e-3, (16,)), data, priors))
        trained.append(adapter_weights(base_model.transformer, "student"))
    assert all(weight.equal(trained[1][key]) for key, weight in trained[0].items())


@pytest.mark.parametrize(
    ("lever", "passes"),
    [
        ("1 of 4 states", 4 * (2 + 1)),  # a batch of 4: the second state was drawn, the student goes so far
        ("2 of 4 states", 4 * (2 + 2)),  # the first two were drawn
        ("K = 1", 4 * 2),
        ("random 2 of the grid", 4 * 4),
        ("two other pictures as context", 4 * 4 * 3),
        ("extrapolation 1", 4 * 4 * 3),
        ("batch 1", 8),
    ],
)
def test_a_levers_step_costs_what_it_says(world, lever, passes):
    config, data, priors = world
    config = replace(config, **dict(LEVERS[lever].settings))
    base_model = load_base_model(config)
    base_model.load_transformer()
    training = Training(base_model, config, data, priors)
    assert list(train(LEVERS[lever], training, (1,))) == [1]
    assert training.passes == passes


def test_a_falling_learning_rate_is_half_of_it_after_half_of_the_passes(world):
    config, data, priors = world
    config = replace(config, objective="sft")
    base_model = load_base_model(config)
    base_model.load_transformer()
    training = Training(base_model, config, data, priors)
    rates, optimize = [], torch.optim.AdamW.step

    def listen(optimizer, *arguments):
        rates.append((training.passes, optimizer.param_groups[0]["lr"]))
        return optimize(optimizer, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", listen)
        list(train(Method(falls_until=16), training, (16,)))
    full = config.learning_rate
    assert rates == [(4, full), (8, 0.75 * full), (12, 0.5 * full), (16, 0.25 * full)]


def test_a_lever_may_adapt_fewer_modules(world):
    config, data, priors = world
    base_model = load_base_model(config)
    base_model.load_transformer()
    next(train(LEVERS["attention only"], Training(base_model, config, data, priors), (1,)))
    adapted = adapter_weights(base_model.transformer, "student")
    blocks = sum(name.endswith("attention") for name, _ in base_model.transformer.named_modules())
    assert len(adapted) == blocks * 4 * 2  # four matrices of each attention, A and B
    assert all(".attention.to_" in name for name in adapted)


def test_the_levers_walk_without_a_lever_is_the_products_step(world):
    config, data, priors = world
    config = replace(config, batch_size=1, micro_batch=1)
    trained = []
    for chosen in (METHODS["dopsd_ema"], Method(objective=Walk)):
        base_model = load_base_model(config)
        base_model.load_transformer()
        training = Training(base_model, config, data, priors)
        assert list(train(chosen, training, (16,))) == [2]
        trained.append(adapter_weights(base_model.transformer, "student"))
    for key, weight in trained[0].items():
        assert torch.allclose(weight, trained[1][key], atol=1e-6)


@pytest.mark.parametrize("name", ["sft_on_parent", "dopsd_nf4"])
def test_what_is_trained_on_another_model_is_scored_on_the_base_itself(world, name, monkeypatch):
    config, data, priors = world
    monkeypatch.setattr(method, "warm_up", lambda name: None)
    job = Job("test", name, 0, 0, 1e-3, (32,))
    base_model, facts = next(method.trained(job, data, priors))
    assert facts["passes"] == 32
    untouched = load_base_model(config)
    untouched.load_transformer()
    weight = base_model.transformer.get_submodule("layers.0.attention.to_q").base_layer.weight
    assert torch.equal(weight, untouched.transformer.layers[0].attention.to_q.weight)
    assert any(
        part.any() for key, part in adapter_weights(base_model.transformer, "student").items() if "_B" in key
    )


def test_a_line_keeps_a_score_that_nothing_tells_of(world, lines_file, monkeypatch):
    monkeypatch.setattr(method, "concept_data", lambda part, number: world[1])
    monkeypatch.setattr(method, "draw_pictures", lambda base_model, prompts, *_: [grey] * len(prompts))
    grey = Image.new("RGB", (64, 64), "grey")
    monkeypatch.setattr(method, "warm_up", lambda name: None)
    (line,) = method.run_job(Job("finals", "dopsd_ema", 0, 0, 1e-3, (32,)))
    assert line["scores"]["copying"] is None
    assert json.loads(json.dumps(line))["passes"] == 32


def test_what_has_learned_nothing_has_the_bases_own_health(world, monkeypatch):
    config, data, priors = world
    monkeypatch.setattr(method, "concept_data", lambda part, number: data)
    monkeypatch.setattr(method, "neutral_world", lambda: SimpleNamespace(watched=priors.prompts[:2]))
    monkeypatch.setattr(method, "bases_watched", method.bases_watched.__wrapped__)  # others' are kept apart
    found = method.measure_health(method.load_compiled(config), Job("health", "dopsd_ema", 0, 0, 1e-3, (1,)))
    assert set(found) == {"judge", "vision"}
    for health in found.values():
        assert health["lora"] == health["base"]
        assert health["base"]["drift"] == 0


@pytest.fixture
def small_test(world, lines_file, monkeypatch, tmp_path):
    """The test's own lines, of a few prompts only, and of one and two steps in place of 32."""
    config, data, priors = world
    every = len(data.scenes) // 7
    told = ("scenes", "captions", "prompts", "teacher_prompts")
    data = replace(data, **{name: getattr(data, name)[::every] for name in told})
    asked = replace(priors, **{field.name: getattr(priors, field.name)[:5] for field in fields(priors)})
    base_model = method.load_compiled(config)
    before, other = (scores.draw_pictures(base_model, asked.prompts, 4, seed) for seed in (0, 1))
    monkeypatch.setattr(method, "concept_data", lambda part, number: data)
    monkeypatch.setattr(
        method, "neutral_world", lambda: method.NeutralWorld((), asked, before, other, priors)
    )
    monkeypatch.setattr(method, "OTHER_STEPS", (1, 2))
    monkeypatch.setattr(rows, "PICTURES", tmp_path)
    return before


def test_the_untrained_base_has_not_moved_and_its_pictures_are_kept_for_the_readme(small_test, lines_file):
    (line,) = method.run_job(Job("test", "base", 0, 0, 1e-3, (0,)))
    found = line["scores"]
    assert (found["drift"], found["takeover"], line["passes"]) == (0, 0, 0)
    assert {"fidelity_1_steps", "quality_1_steps", "fidelity_2_steps", "quality_2_steps"} <= set(found)
    lines_file.write_text(json.dumps({"base": "b", **line}) + "\n")
    kept = method_picture.kept_pictures()["base", 0]
    assert kept.shape == (rows.SCENES + rows.OTHERS, 64, 64, 3)
    likeness = np.abs(kept[rows.SCENES :] / 255.0 - np.stack(small_test) / 255.0).mean()
    assert likeness < 0.02  # a file of quality 95


def test_other_steps_and_pictures_are_of_the_first_seed_and_the_teacher_has_no_drift(small_test):
    (line,) = method.run_job(Job("test", "base", 0, 1, 1e-3, (0,)))
    assert not [name for name in line["scores"] if name.endswith("_steps")]
    assert line["scores"]["drift"] == 0  # of what is neutral the noise is always the same
    assert not list(rows.PICTURES.iterdir())
    (line,) = method.run_job(Job("test", "teacher", 5, 1, 1e-3, (0,)))
    assert "drift" not in line["scores"]


def test_the_table_in_the_documents_is_the_files():
    measured = json.loads((RESULTS / "method.json").read_text())["test"]
    shown = (RESULTS.parent.parent / "docs" / "method.md").read_text(encoding="utf-8")
    assert tables.as_markdown(measured) in shown
