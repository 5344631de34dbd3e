"""A run under all that saves memory and rounds nothing gives the very LoRA file of a run without."""

from dataclasses import replace

import pytest

from dopsd_app import train as training
from dopsd_app.data.pictures import read_examples
from dopsd_app.jobs.events import LoraChecked, PreviewSaved
from dopsd_app.jobs.runs import create_run
from dopsd_app.models.architecture import BY_EYES
from dopsd_app.models.memory_plan import ALL, MemoryPlan
from dopsd_app.planning.plan import choose_plan
from dopsd_app.train import train
from tests.support.pictures import make_picture
from tests.support.tiny_models import save_klein, save_z_image

LEVERS = MemoryPlan(
    offloaded_blocks=ALL,
    recomputed_blocks=ALL,
    autoencoder_in_ram=True,
    encoders_by_layer=True,
    tiled_decode=True,  # which changes nothing in pictures of one tile
)


@pytest.mark.process
@pytest.mark.parametrize(
    ("save", "context"), [(save_z_image, "auto"), (save_klein, "reference"), (save_klein, BY_EYES)]
)
def test_the_lora_and_the_previews_are_the_same_bytes(tiny_config, tmp_path, monkeypatch, save, context):
    save(tmp_path / "base")
    config = replace(
        tiny_config,
        base_model=str(tmp_path / "base"),
        resolution=64,
        steps=2,
        rollout_steps=1,
        preview_every=2,
        teacher_context=context,
    )
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(4):
        make_picture(number, 64, 64).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text("a dog\n")
    dataset = read_examples(pictures, minimum_side=64)

    def trained(folder):
        run = create_run(tmp_path / folder, config, dataset)
        events = list(train(run))
        assert next(event for event in events if isinstance(event, LoraChecked)).passed
        drawn = [event for event in events if isinstance(event, PreviewSaved)]
        files = [run.path / name for event in drawn for name in event.files]
        return run.lora_file.read_bytes(), [file.read_bytes() for file in files]

    def planned(memory_plan):
        monkeypatch.setattr(
            training,
            "choose_plan",
            lambda *given, **more: replace(choose_plan(*given, **more), plan=memory_plan),
        )

    planned(MemoryPlan(recomputed_blocks=ALL))
    plain = trained("plain")
    planned(LEVERS)
    assert trained("levers") == plain
