"""Health scores, in features and pictures that are few enough to reckon by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from dopsd_app.checks.health import HealthPictures, features_health, health_of, judged_health
from dopsd_app.checks.health_rules import LEAST_QUALITY
from dopsd_app.checks.judge.likeness import likeness_to_the_world
from dopsd_app.checks.judge.world import BACKGROUND_WORDS, Scene, draw, random_concept, scene_asked_in
from dopsd_app.config import load_preset, make_config
from dopsd_app.models.load import load_base_model

TRAINING = torch.tensor([[4.0, 0.0, 1.0], [4.0, 0.0, -1.0]])
BASE = torch.tensor([[-4.0, 0.0, 3.0], [-4.0, 0.0, -3.0]])  # two prompts: they differ in the third feature
NEUTRAL = torch.tensor([[0.0, 6.0, 0.0], [0.0, -6.0, 0.0]])  # all six together: zero on the mean


def health(training, base, lora, base_neutral, lora_neutral):
    """Of pictures that are one token each."""
    return health_of(*(f[:, None] for f in (training, base, lora, base_neutral, lora_neutral)))


def test_the_base_itself_follows_and_has_not_drifted():
    found = health(TRAINING, BASE, BASE, NEUTRAL, NEUTRAL)
    assert (found.following, found.drift, found.quality) == pytest.approx((1, 0, 1), abs=1e-6)
    assert found.concept == pytest.approx(-0.8)  # (-4, 0, 3) against (4, 0, 0)


def test_a_lora_that_learned_draws_the_concept_where_its_prompts_say():
    lora = torch.tensor([[4.0, 0.0, 3.0], [4.0, 0.0, -3.0]])
    found = health(TRAINING, BASE, lora, NEUTRAL, NEUTRAL)
    assert (found.concept, found.following, found.drift) == pytest.approx((0.8, 1, 0), abs=1e-6)


def test_a_lora_that_copies_does_not_follow_whatever_neutral_prompts_do():
    copies = torch.tensor([[4.0, 1.0, 0.0], [4.0, -1.0, 0.0]])  # what differs is none of the prompts' doing
    found = health(TRAINING, BASE, copies, NEUTRAL, NEUTRAL)
    assert found.following == pytest.approx(0, abs=1e-6)
    assert found.concept == pytest.approx(4 / 17**0.5)
    assert health(TRAINING, BASE[:1], copies[:1], NEUTRAL, NEUTRAL).following is None  # one cannot tell


def test_a_lora_that_leaks_drifts():
    leaks = torch.tensor([[6.0, 0.0, 0.0], [0.0, -6.0, 0.0]])  # one of the two is the concept now
    assert health(TRAINING, BASE, BASE, NEUTRAL, leaks).drift == pytest.approx(0.5, abs=1e-6)


def test_what_is_common_to_all_pictures_counts_for_nothing_but_quality():
    shift = torch.tensor([100.0, -50.0, 7.0])
    shifted = health(*(features + shift for features in (TRAINING, BASE, BASE, NEUTRAL, NEUTRAL)))
    assert shifted.concept == pytest.approx(-0.8, abs=1e-5)


def test_following_counts_prompts_that_can_be_told_apart_though_the_concept_changes_all():
    base = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [-1.0, -1.0, 0.0]])
    # The concept has made all alike in the third feature, and what is left of the prompts is small.
    lora = 0.1 * base + torch.tensor([0.0, 0.0, 5.0])
    assert health(TRAINING, base, lora, NEUTRAL, NEUTRAL).following == 1
    # Of six comparisons, the two between the swapped prompts are lost, and the four with the third are won.
    swapped = health(TRAINING, base, lora[[1, 0, 2]], NEUTRAL, NEUTRAL)
    assert swapped.following == pytest.approx((4 - 2) / 6)


def test_following_sees_where_something_is():
    left, right = torch.eye(2), torch.eye(2)[[1, 0]]  # two tokens, the same two features
    base, lora = torch.stack([left, right]), torch.stack([left, right]) * 2 + 1
    neutral = torch.ones(1, 2, 2)
    assert health_of(base, base, lora, neutral, neutral).following > 0
    assert health_of(base, base, lora.flip(0), neutral, neutral).following < 0


def test_quality_is_likeness_to_the_nearest_known_picture():
    known = torch.tensor([[3.0, 4.0, 0.0], [4.0, 3.0, 0.0]])  # their cosine is .96
    odd = torch.tensor([[0.0, 0.0, 1.0], [0.0, 4.0, 3.0]])  # 0, and .64 with the first
    base = known[[0, 0]]
    found = health(known[1:], base, odd, base[:1], base[:1])
    # Of four known ones three are the same picture; the drawn ones are nothing, .64 and that picture.
    assert found.quality == pytest.approx((0 + 0.64 + 1) / 3 / ((3 + 0.96) / 4), abs=1e-6)


SCENES = (Scene(0, 0, 0), Scene(2, 1, 1), Scene(4, 2, 0), Scene(6, 0, 1))  # background, place, size


def shown(concepts, scenes=SCENES):
    return [Image.fromarray(draw(*pair)) for pair in zip(concepts, scenes, strict=True)]


@pytest.fixture
def creatures():
    rng = np.random.default_rng(7)
    return [random_concept(rng) for _ in range(5)]


PROMPTS = tuple(f"a zorp on a {BACKGROUND_WORDS[scene.background]} background" for scene in SCENES)


@pytest.fixture(scope="module")
def base_model():
    return load_base_model(make_config(load_preset("pocket").settings))


def judged(learned, others, lora, lora_neutral=None):
    """The health when the LoRA draws this, and the base has drawn others."""
    base = shown(others)
    neutral = base if lora_neutral is None else lora_neutral
    return judged_health(HealthPictures(PROMPTS, shown([learned] * 4), base, lora, base, neutral))


def test_the_judge_finds_the_base_itself_unchanged(creatures):
    learned, *others = creatures
    health = judged(learned, others, shown(others))
    assert (health.following, health.drift, health.quality) == (1, 0, 1)
    assert health.concept < 0.5


def test_the_judge_sees_what_was_learned(creatures):
    learned, *others = creatures
    good = judged(learned, others, shown([learned] * 4))
    assert (good.concept, good.following, good.drift) == (1, 1, 0)
    half = replace(learned, eyes=(learned.eyes + 1) % 3, frequency=1 - learned.frequency)
    assert judged(learned, others, shown([half] * 4)).concept == pytest.approx(4 / 6, abs=0.05)


def test_the_judge_sees_scenes_that_nobody_asked_for_and_other_creatures_that_change(creatures):
    learned, *others = creatures
    half = [*SCENES[:2], *(replace(scene, background=scene.background + 1) for scene in SCENES[2:])]
    health = judged(learned, others, shown([learned] * 4, half), shown([learned] * 4))
    # Two of four backgrounds are right; one in eight would be by chance.
    assert health.following == pytest.approx((0.5 - 0.125) / (1 - 0.125))
    assert 0.3 < health.drift < 1  # the scenes of neutral pictures are as they were


def test_where_nothing_is_asked_for_there_is_no_following(creatures):
    one = shown(creatures[:1], SCENES[:1])
    assert judged_health(HealthPictures(("a zorp",), one, one, one, one, one)).following is None


def test_the_judge_sees_pictures_that_become_less_clean_whatever_they_show(creatures):
    learned, *others = creatures
    good = shown([learned] * 4)
    worse = [picture.filter(ImageFilter.GaussianBlur(1.5)) for picture in good]
    assert judged(learned, others, good).quality == pytest.approx(1, abs=0.02)
    blurred = likeness_to_the_world(worse) / likeness_to_the_world(good)
    assert blurred < 0.9
    # The four neutral ones are as clean as they were.
    assert judged(learned, others, worse).quality == pytest.approx((1 + blurred) / 2, abs=0.02)


def test_a_prompt_names_what_it_says_of_the_scene():
    assert scene_asked_in("a big zorp in the middle, sea") == [("background", 7), ("place", 1), ("size", 1)]
    assert scene_asked_in("a seaside bigfoot") == []


def test_pictures_that_fall_apart_are_seen_whatever_they_were_to_show(creatures, base_model):
    learned, *others = creatures
    training = [picture.resize((80, 64)) for picture in shown([learned] * 4)]  # people's have many sizes
    rng = np.random.default_rng(4)
    noise = [Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in SCENES]
    base, good = shown(others), shown([learned] * 4)
    whole = features_health(base_model, HealthPictures(PROMPTS, training, base, good, base, base))
    ruined = features_health(base_model, HealthPictures(PROMPTS, training, base, noise, base, noise))
    assert whole.quality > LEAST_QUALITY > ruined.quality
