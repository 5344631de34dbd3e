"""A run that has finished, without its training."""

import numpy as np

from dopsd_app.checks.lora_check import LoraCheck
from dopsd_app.config import make_config
from dopsd_app.jobs.events import LoraChecked, append_event
from dopsd_app.method.lora_file import save_lora
from dopsd_app.method.lora_metadata import describe_lora
from dopsd_app.models.catalog import find_facts


def finish(run, weights=None):
    """Leaves in the run folder what a finished training leaves."""
    if weights is None:
        rng = np.random.default_rng(0)
        shapes = {"layers.0.w.lora_A.weight": (4, 8), "layers.0.w.lora_B.weight": (8, 4)}
        weights = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    config, facts = run.config, find_facts(run.config.base_model)
    metadata = describe_lora(config, facts, [[f"a {config.trigger_word}"]], config.steps)
    save_lora(run.lora_file, weights, config.strength, metadata)
    check = LoraCheck(modules=1, strength=(1.0, 1.0), exact=True)
    check.save(run.check_file)
    append_event(run.events_file, LoraChecked(config.steps, not check.problems, check.summary))
    return run


def pocket_config(**settings):
    common = {"base_model": "pocket-turbo", "steps": 12, "rank": 4, "num_inference_steps": 4}
    return make_config(common | {"resolution": 64, "name": "My Zorp", "trigger_word": "zorp"} | settings)
