"""What a LoRA file says of itself: the texts in its header, by which programs and people know it."""

import base64
import json
from collections.abc import Sequence
from importlib.metadata import version

from dopsd_app.config import OBJECTIVES, TrainConfig
from dopsd_app.data.caption_file import plain_line
from dopsd_app.data.captions import holds
from dopsd_app.jobs.lora_file import LORA_SCHEMA
from dopsd_app.models.architecture import BaseModelFacts
from dopsd_app.models.catalog import public_name
from dopsd_app.progress import words_for_count
from dopsd_app.schema import stamp

FORMAT = {"format": "pt"}  # that the tensors are laid out as PyTorch has them: some loaders ask for it
UNNAMED = "LoRA"


def describe_lora(
    config: TrainConfig,
    facts: BaseModelFacts,
    captions: Sequence[Sequence[str]],
    steps: int,
    thumbnail: bytes = b"",
) -> dict[str, str]:
    """A LoRA file's metadata: our own, ModelSpec 1.0.1 (`modelspec.`), and as kohya's scripts do (`ss_`).

    `captions` has those of each training picture, and `thumbnail` is a JPEG that the LoRA has drawn, or
    nothing. Of all captions only the trigger word is told, for they may be private. No value depends on when
    and in which folder it was trained: the same training is to be the same file.

    The strength is folded into the weights, so the alpha that others are told is the rank: what loaders apply
    is then exactly 1.
    """
    trigger, shows_it = _trigger(config, captions)
    return (
        FORMAT
        | {"dopsd": json.dumps(_own_facts(config, steps))}
        | _model_spec(config, facts, trigger, steps, thumbnail)
        | _as_kohya(config, facts, trigger, len(captions), steps)
        | (_trigger_words(trigger, shows_it) if trigger else {})
    )


def _trigger(config: TrainConfig, captions: Sequence[Sequence[str]]) -> tuple[str, int]:
    """The trigger word and the number of pictures whose captions have it; empty where none has.

    What no caption holds was not trained, whatever the settings call it.
    """
    word = plain_line(config.trigger_word)
    if not word:
        return "", 0
    number = sum(any(holds(text.lower(), word.lower()) for text in texts) for texts in captions)
    return (word, number) if number else ("", 0)


def _own_facts(config: TrainConfig, steps: int) -> dict:
    return {
        **stamp(LORA_SCHEMA),
        "base_model": public_name(config.base_model),
        "revision": config.revision,
        "trigger_word": config.trigger_word,
        "rank": config.rank,
        "alpha": config.strength * config.rank,
        "steps": steps,
        "seed": config.seed,
        "method": OBJECTIVES[config.objective].method,
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "peft")},
    }


def _model_spec(
    config: TrainConfig, facts: BaseModelFacts, trigger: str, steps: int, thumbnail: bytes
) -> dict[str, str]:
    """github.com/Stability-AI/ModelSpec. Its date would make of one training many files: it is left out.

    So is the prediction type: readers know it of Stable Diffusion alone, which has more than one.
    """
    spec = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{facts.spec_name}/lora",
        "implementation": "diffusers",  # whose names the tensors have
        "title": _title(config, trigger),
        "description": f"A LoRA for {_base(config, facts)}, trained with"
        f" {OBJECTIVES[config.objective].method} in {words_for_count(steps, 'step')}.",
        "usage_hint": _usage(config, facts, trigger),
        "resolution": f"{config.resolution}x{config.resolution}",
        "license": _licence(facts),
        "trigger_phrase": trigger,
        "thumbnail": _data_address(thumbnail),
    }
    return {f"modelspec.{key}": value for key, value in spec.items() if value}


def _base(config: TrainConfig, facts: BaseModelFacts) -> str:
    return facts.repository or public_name(config.base_model)


def _title(config: TrainConfig, trigger: str) -> str:
    return plain_line(config.name) or trigger or UNNAMED


def _usage(config: TrainConfig, facts: BaseModelFacts, trigger: str) -> str:
    # Where diffusers says 0 for no guidance, other programs say 1.
    guidance = max(facts.architecture.guidance, 1)
    drawn = f"{words_for_count(config.num_inference_steps, 'step')} at CFG {guidance:g}, strength 1."
    return f"Trigger word: {trigger}. {drawn}" if trigger else drawn


def _licence(facts: BaseModelFacts) -> str:
    licence = facts.licence
    link = f" ({licence.address})" if licence.address else ""
    return f"{plain_line(licence.name)}{link}" if licence.name else ""


def _data_address(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" if jpeg else ""


def _as_kohya(
    config: TrainConfig, facts: BaseModelFacts, trigger: str, pictures: int, steps: int
) -> dict[str, str]:
    values = {
        "base_model_version": facts.kohya_name,
        "sd_model_name": _base(config, facts),
        "network_module": "networks.lora",  # which says: a plain LoRA, none of its relatives
        "network_dim": config.rank,
        "network_alpha": config.rank,
        "output_name": _title(config, trigger),
        "num_train_images": pictures,
        "resolution": f"({config.resolution}, {config.resolution})",
        "steps": steps,
        "learning_rate": config.learning_rate,
        "batch_size_per_device": config.batch_size,
        "optimizer": config.optimizer,
        "seed": config.seed,
    }
    return {f"ss_{key}": str(value) for key, value in values.items() if value != ""}


def _trigger_words(trigger: str, pictures: int) -> dict[str, str]:
    """Where Civitai and others look for them: as the most frequent tag, in a folder named after it."""
    return {
        "ss_tag_frequency": json.dumps({f"1_{trigger}": {trigger: pictures}}),
        "trained_words": json.dumps([trigger]),
    }
