"""The model card of a LoRA.

Much of it was typed by people. In the metadata such texts stand in double quotes; in the body only as code,
into which Markdown reads nothing; and in the programme as Python writes them.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dopsd_app.config import OBJECTIVES, TrainConfig
from dopsd_app.jobs.events import LoraChecked, read_events
from dopsd_app.jobs.lora_file import read_facts
from dopsd_app.jobs.runs import LORA_FILE, Run
from dopsd_app.models.architecture import BaseModelFacts
from dopsd_app.models.catalog import CATALOG, find_facts, find_licence, is_known, public_name, published_as
from dopsd_app.progress import words_for_count

if TYPE_CHECKING:
    from huggingface_hub import ModelCard, ModelCardData

LEAST_DIFFUSERS = "0.40"  # earlier ones take no `dtype`

CardPicture = tuple[Path, str]  # a generated picture and its prompt


def make_card(
    run: Run,
    *,
    repo_id: str,
    pictures: Sequence[CardPicture] = (),
    with_captions: bool = False,
    lora_file: Path | None = None,
) -> "ModelCard":
    """The model card of a run's LoRA, or of the one in `lora_file`; `picture_name` names its pictures."""
    from huggingface_hub import ModelCard

    config = run.config
    prompt = pictures[0][1] if pictures else None
    body = [
        "<Gallery />" if pictures else "",
        f"# LoRA {_code(repo_id.rpartition('/')[2])}",
        *_introduction(config),
        f"## Use with diffusers\n\n{_fenced('python', make_snippet(config, repo_id, prompt, run.sources))}",
        f"## How it was trained\n\n{_training_facts(run, config, lora_file or run.lora_file)}",
        _captions(run) if with_captions else "",
        f"## Licence\n\n{_licence_words(config)}",
    ]
    card = ModelCard("---\n\n---\n\n" + "\n\n".join(part for part in body if part) + "\n")
    card.data = _card_data(config, pictures, bool(run.sources))
    return card


def _card_data(config: TrainConfig, pictures: Sequence[CardPicture], edits: bool) -> "ModelCardData":
    import yaml
    from huggingface_hub import ModelCardData

    yaml.add_representer(_Quoted, _represent_quoted)
    base = published_as(config.base_model) or None
    licence = find_licence(config.base_model, config.revision)
    known = "image-to-image" if edits else "text-to-image"
    task = known if _known_facts(config) else None
    widget = [
        {"text": _Quoted(prompt), "output": {"url": picture_name(number)}}
        for number, (_, prompt) in enumerate(pictures, start=1)
    ]
    tag = OBJECTIVES[config.objective].name.lower().replace(" ", "-").replace("'", "")
    return ModelCardData(
        base_model=base,
        base_model_relation="adapter" if base else None,
        library_name="diffusers",
        pipeline_tag=task,
        license=licence.id or None,
        license_name=licence.name if licence.id == "other" else None,
        license_link=(licence.address or None) if licence.id == "other" else None,
        tags=[*([task] if task else []), "diffusers", "lora", "template:sd-lora", tag],
        instance_prompt=_Quoted(config.trigger_word) if config.trigger_word.strip() else None,
        widget=widget or None,
    )


def _known_facts(config: TrainConfig) -> BaseModelFacts | None:
    """Facts about the base model; None where it is not here any more: then the card leaves them out."""
    if not is_known(config.base_model, config.revision):
        return None
    return find_facts(config.base_model, config.revision)


def picture_name(number: int) -> str:
    """Where the card expects its pictures, counted from 1."""
    return f"images/picture-{number}.webp"


def _introduction(config: TrainConfig) -> list[str]:
    if repository := published_as(config.base_model):
        base = f"[{repository}](https://huggingface.co/{repository})"
    elif config.base_model in CATALOG:
        base = f"{_code(config.base_model)}, the small demonstration model that comes with the trainer"
    else:
        base = f"{_code(public_name(config.base_model))}, a base model in a diffusers folder"
    objective = OBJECTIVES[config.objective]
    method = f"trained with [{objective.name}](https://arxiv.org/abs/{objective.paper}): {objective.about}"
    facts = _known_facts(config)
    other = facts and facts.native_steps and facts.native_steps != config.num_inference_steps
    drawn_in = words_for_count(config.num_inference_steps, "step")
    steps = f"It draws in {drawn_in}{'' if other else ', as the base model does'}."
    trigger = _plain(config.trigger_word)
    return [
        f"A LoRA for {base}, {method}. {steps}",
        f"## Trigger word\n\nWrite {_code(trigger)} in the prompt." if trigger else "",
    ]


def _licence_words(config: TrainConfig) -> str:
    licence = find_licence(config.base_model, config.revision)
    if not licence.name:
        base = _code(public_name(config.base_model))
        return f"The licence of the base model {base} holds for this LoRA too."
    link = f" ({licence.address})" if licence.address else ""
    sentences = [
        f"That of the base model: {_code(licence.name if licence.id == 'other' else licence.id)}{link}."
    ]
    if licence.forbids_commerce:
        sentences.append("Neither the base model nor this LoRA may be used commercially.")
    facts = _known_facts(config)
    if facts and facts.gated:
        sentences.append(
            "The base model is gated: accept its terms at"
            f" https://huggingface.co/{facts.repository} and sign in by `hf auth login` before you load it."
        )
    return " ".join(sentences)


def make_snippet(
    config: TrainConfig, lora: str, prompt: str | None, sources: int = 0, file: str = LORA_FILE
) -> str:
    """A program that draws with the LoRA: this file of a repository on the Hub, or of a folder.

    One that starts from `sources` draws a picture of the same shape.
    """
    trigger = _plain(config.trigger_word)
    prompt = prompt or (f"a picture of {trigger}" if trigger else "a picture")
    if repository := published_as(config.base_model):
        base, comment = repository, ""
    elif config.base_model in CATALOG:
        base, comment = f"assets/{config.base_model}", "  # in the trainer's folder"
    else:
        base, comment = public_name(config.base_model), "  # the base model's folder"
    revision = f", revision={config.revision!r}" if repository and config.revision else ""
    facts = _known_facts(config)
    multiple = facts.sizes.side_multiple if facts else 16
    side = max(config.resolution // multiple, 1) * multiple
    guidance = f"\n    guidance_scale={facts.architecture.guidance}," if facts else ""
    drawn, loading = f"height={side},\n    width={side},", ""
    if sources:
        names = ["source.png"] if sources == 1 else [f"source_{number + 1}.png" for number in range(sources)]
        opened = [f'load_image("{name}")' for name in names]
        drawn = f"image={opened[0] if sources == 1 else '[' + ', '.join(opened) + ']'},"
        loading = "\nfrom diffusers.utils import load_image"
    return f"""# With diffusers {LEAST_DIFFUSERS} or newer, transformers and peft.
import torch
from diffusers import DiffusionPipeline{loading}

base = {base!r}{comment}
device = "cuda" if torch.cuda.is_available() else "cpu"
dtype = torch.bfloat16 if device == "cuda" else torch.float32
pipeline = DiffusionPipeline.from_pretrained(base{revision}, dtype=dtype).to(device)
pipeline.load_lora_weights({lora!r}, weight_name={file!r})
picture = pipeline(
    prompt={prompt!r},
    {drawn}
    num_inference_steps={config.num_inference_steps},{guidance}
).images[0]
picture.save("picture.png")"""


def _training_facts(run: Run, config: TrainConfig, lora_file: Path) -> str:
    side = config.resolution
    made = read_facts(lora_file)
    facts = [
        f"{words_for_count(len(list(run.dataset.glob('*.png'))), 'picture')} of about {side} x {side} pixels",
        f"{words_for_count(made.get('steps', config.steps), 'optimizer step')} of"
        f" {words_for_count(config.batch_size, 'picture')} each,"
        f" learning rate {config.learning_rate:g}",
        f"rank {config.rank}; the strength of {config.strength:g} is in the weights: load them at 1",
    ]
    if run.sources:
        facts.append(f"each picture made from {words_for_count(run.sources, 'source picture')} at the most")
    if OBJECTIVES[config.objective].walks:
        facts.append(
            f"{words_for_count(config.rollout_steps, 'state')} of the model's own"
            f" {words_for_count(config.num_inference_steps, 'step')} visited in each roll-out"
        )
    checks = [event for event in read_events(run.events_file) if isinstance(event, LoraChecked)]
    if checks and lora_file == run.lora_file:
        # What a failed check reports may quote folders of this computer.
        summary = checks[-1].summary if checks[-1].passed else "It did not load as it should."
        facts.append(f"check after saving: {summary}")
    if "version" in made:
        facts.append(f"version of the trainer: {_plain(str(made['version']))}")
    listed = "\n".join(f"- {fact}" for fact in facts)
    return f"{listed}\n\n`training_config.json` holds the settings."


def _captions(run: Run) -> str:
    files = sorted(run.dataset.glob("*.txt"))
    lines = [line for file in files for line in file.read_text(encoding="utf-8").split("\n")]
    captions = "\n".join(caption for line in lines if (caption := _plain(line)))
    return f"## Captions of the training pictures\n\n{_fenced('text', captions)}"


# --- texts of people


class _Quoted(str):
    """A text that YAML gets in double quotes.

    PyYAML itself leaves plain what other readers take for a number (`1e3`), and loses a line end (U+0085).
    """


def _represent_quoted(dumper, text: _Quoted):
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')


def _plain(text: str) -> str:
    """The text in one line of printable characters."""
    printable = "".join(c if c.isprintable() or c == "\u200d" else " " for c in text)  # U+200D joins emojis
    return " ".join(printable.split())


def _code(text: str) -> str:
    """The text as code within a line."""
    text = _plain(text)
    fence = _fence(text, 1)
    # Blanks keep a backtick at either end apart from the fence; Markdown takes one off each side.
    return f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}"


def _fenced(language: str, text: str) -> str:
    """The text as a block of code."""
    fence = _fence(text, 3)
    return f"{fence}{language}\n{text}\n{fence}"


def _fence(text: str, least: int) -> str:
    """More backticks in a row than the text has anywhere."""
    longest = max((len(row) for row in re.findall("`+", text)), default=0)
    return "`" * max(least, longest + 1)
