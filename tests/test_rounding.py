"""What rounding the base's weights costs: how it is counted."""

import pytest
import torch

from benchmarks import rounding
from dopsd_app.models.protocol import NO_PICTURES

pytestmark = pytest.mark.benchmark


def test_the_fewer_bits_the_further_are_velocities_from_the_exact_ones():
    config = rounding.make_settings(seed=0)
    exact = rounding.load(config, "none")
    exact.load_encoders()
    prompts = [
        exact.encode(NO_PICTURES, f"a zorp on a {color} background", "student") for color in ("red", "blue")
    ]
    errors = {
        name: torch.tensor(rounding.velocity_errors(exact, rounding.load(config, name), prompts, config))
        for name in ("none", "int8", "nf4")
    }
    assert all(len(each) == config.num_inference_steps for each in errors.values())
    assert (errors["none"] == 0).all()
    assert (errors["int8"] > 0).all() and (5 * errors["int8"] < errors["nf4"]).all()


def trained(name, concept, own, exact):
    row = {"rounding": name, "concept": concept, "seed": 0, "velocity_errors": [0.1, 0.3]}
    return row | {"own_base": {"product": own}, "exact_base": {"product": exact}}


def test_roundings_are_compared_creature_by_creature():
    rows = [trained("none", 0, 0.9, 0.9), trained("none", 1, 0.5, 0.5), trained("none", 2, 0.1, 0.1)]
    rows += [trained("nf4", 0, 0.7, 0.8), trained("nf4", 1, 0.3, 0.4)]
    means = rounding.summarize(rows)
    assert list(means) == ["none", "nf4"]
    assert (means["nf4"]["trainings"], means["nf4"]["velocity_error"]) == (2, 0.2)
    assert means["nf4"]["own_base"] == {
        "product": {"mean": 0.5, "interval_95": pytest.approx(2.541, abs=1e-3)},
        "behind": {"mean": 0.2, "interval_95": 0.0},
    }
    assert means["nf4"]["exact_base"]["behind"] == {"mean": 0.1, "interval_95": 0.0}
    assert rounding.as_markdown(rows).splitlines()[-1].startswith("| nf4 | 2 | 20.0% | 0.50 ± 2.54 | 0.60")
