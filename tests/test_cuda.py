"""What only a CUDA card can show; without one there is nothing to run here."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from dopsd_app.jobs.events import LoraChecked, StepDone
from dopsd_app.train import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_run_on_the_card_is_checked_and_repeats_itself(new_run, tiny_config, quantization):
    config = replace(
        tiny_config,
        rank=128,
        device="cuda",
        optimizer="adamw8bit",
        memory_limit=8.0,
        quantization=quantization,
    )
    students = []
    for _ in range(2):
        run = new_run(config)
        events = list(train(run))
        assert next(event for event in events if isinstance(event, LoraChecked)).passed
        assert all(event.peak_memory > 0 for event in events if isinstance(event, StepDone))
        students.append(load_file(run.lora_file))
    assert all(weight.equal(students[1][name]) for name, weight in students[0].items())
