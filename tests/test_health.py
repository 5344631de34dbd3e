"""Health scores, in features that are few enough to reckon by hand."""

import pytest
import torch

from dopsd_app.health import health_of

TRAINING = torch.tensor([[4.0, 0.0, 1.0], [4.0, 0.0, -1.0]])
BASE = torch.tensor([[-4.0, 0.0, 3.0], [-4.0, 0.0, -3.0]])  # two prompts: they differ in the third feature
NEUTRAL = torch.tensor([[0.0, 6.0, 0.0], [0.0, -6.0, 0.0]])  # all six together: zero on the mean


def test_the_base_itself_follows_and_has_not_drifted():
    health = health_of(TRAINING, BASE, BASE, NEUTRAL, NEUTRAL)
    assert (health.following, health.drift) == pytest.approx((1, 0), abs=1e-6)
    assert health.concept == pytest.approx(-0.8)  # (-4, 0, 3) against (4, 0, 0)


def test_a_lora_that_learned_draws_the_concept_where_its_prompts_say():
    lora = torch.tensor([[4.0, 0.0, 3.0], [4.0, 0.0, -3.0]])
    health = health_of(TRAINING, BASE, lora, NEUTRAL, NEUTRAL)
    assert (health.concept, health.following, health.drift) == pytest.approx((0.8, 1, 0), abs=1e-6)


def test_a_lora_that_copies_does_not_follow_and_one_that_leaks_drifts():
    copies = torch.tensor([[4.0, 1.0, 0.0], [4.0, -1.0, 0.0]])  # what differs is none of the prompts' doing
    leaks = torch.tensor([[6.0, 0.0, 0.0], [0.0, -6.0, 0.0]])  # one of the two is the concept now
    health = health_of(TRAINING, BASE, copies, NEUTRAL, leaks)
    assert (health.following, health.drift) == pytest.approx((0, 0.5), abs=1e-6)
    assert health.concept == pytest.approx(4 / 17**0.5)


def test_what_is_common_to_all_pictures_counts_for_nothing():
    shift = torch.tensor([100.0, -50.0, 7.0])
    shifted = health_of(*(features + shift for features in (TRAINING, BASE, BASE, NEUTRAL, NEUTRAL)))
    assert shifted.concept == pytest.approx(-0.8, abs=1e-5)


def test_following_counts_prompts_that_can_be_told_apart_though_the_concept_changes_all():
    base = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [-1.0, -1.0, 0.0]])
    # The concept has made all alike in the third feature, and what is left of the prompts is small.
    lora = 0.1 * base + torch.tensor([0.0, 0.0, 5.0])
    swapped = lora[[1, 0, 2]]
    assert health_of(TRAINING, base, lora, NEUTRAL, NEUTRAL).following == 1
    # Of six comparisons, the two between the swapped prompts are lost, and the four with the third are won.
    assert health_of(TRAINING, base, swapped, NEUTRAL, NEUTRAL).following == pytest.approx((4 - 2) / 6)
