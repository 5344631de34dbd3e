"""What a training run is asked to do: one flat value, saved with the run."""

import dataclasses
import difflib
import json
import tomllib
import typing
from dataclasses import dataclass
from pathlib import Path

from dopsd_app.errors import KnownFailure
from dopsd_app.files import replace_file
from dopsd_app.schema import check_schema, stamp, without_stamp

PRESETS = Path(__file__).parent.parent / "presets"
SCHEMA = 1  # of a run's config.json, and with it of the run's whole folder
DEFAULT_PRESET = "pocket"  # the built-in base, which runs anywhere
MEMORY_LEVERS = {  # what saves memory, by what it costs: first what changes only the time
    "micro_batch": 1,
    "gradient_checkpointing": True,
    "optimizer": "adamw8bit",
    "quantization": "nf4",
    "resolution": 512,
    "rank": 16,
}


@dataclass(frozen=True)
class ObjectiveFacts:
    """What page, plan and model card know of an objective; what it computes is in `method/objectives`."""

    name: str
    paper: str  # number on arXiv
    about: str  # how a model card goes on behind the name
    walks: bool = False  # visits the states of a roll-out, and asks a teacher at each
    film: bool = False  # these states are shown while it trains
    teacher_contexts: bool = False  # needs the training pictures as the teacher sees them
    latents: bool = False  # needs the training pictures as the transformer draws them
    passes: int = 1  # the student's for each example, at each state where it walks
    together: int = 1  # of these, whose graphs are alive at the same time

    @property
    def method(self) -> str:
        """The name with its source, as LoRA files say it."""
        return f"{self.name} (arXiv {self.paper})"


OBJECTIVES = {
    "dopsd": ObjectiveFacts(
        "D-OPSD",
        "2605.05204",
        "the model learned on its own few steps",
        walks=True,
        film=True,
        teacher_contexts=True,
    ),
    "sft": ObjectiveFacts("SFT", "2210.02747", "ordinary fine-tuning on the training pictures", latents=True),
    "dreambooth": ObjectiveFacts(
        "DreamBooth",
        "2208.12242",
        "fine-tuning on the training pictures, and on the base model's own of other prompts",
        latents=True,
        passes=2,
    ),
    "pso": ObjectiveFacts(
        "PSO",
        "2410.03190",
        "the training pictures were preferred to the base model's own",
        latents=True,
        passes=2,
        together=2,
    ),
    "off_policy": ObjectiveFacts(
        "off-policy distillation",
        "2605.05204",
        "the model learned on the few steps of its teacher",
        walks=True,
        teacher_contexts=True,
    ),
    "sft_on_samples": ObjectiveFacts(
        "SFT on the teacher's samples",
        "2605.05204",
        "fine-tuning on pictures that the base model drew while it saw the training pictures",
        teacher_contexts=True,
    ),
}


class ConfigError(KnownFailure):
    """Settings that cannot work; the message names each of them, its value and what would be right."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of one run; the defaults are the paper's for Z-Image-Turbo, a preset holds what differs.

    Raises `ConfigError` when made with values that cannot work.
    """

    base_model: str = "pocket-turbo"  # a name in catalog.py, a repository on the Hub, or a folder
    revision: str = ""  # of a repository: branch, tag or commit; a run that has begun keeps the commit
    name: str = ""  # becomes part of the run's folder name
    trigger_word: str = ""  # the word that stands for the concept in captions and prompts

    objective: str = "dopsd"  # what training minimises: a name in OBJECTIVES
    steps: int = 1000  # optimizer steps
    rollout_steps: int = 4  # K: states that the student visits, and learns from, in each roll-out
    num_inference_steps: int = 8  # the base model's own few steps: previews and pictures use them
    batch_size: int = 4  # examples per optimizer step
    micro_batch: int = 1  # examples per pass: changes memory and speed, never the result
    learning_rate: float = 1e-4
    max_grad_norm: float = 1.0
    optimizer: str = "adamw8bit"  # "adamw8bit" (bitsandbytes: a quarter of the optimizer's memory) or "adamw"
    loss: str = "denoised"  # "denoised" (the released code's) or "velocity" (the paper's)
    teacher: str = "ema"  # "ema": the student's slow copy; "base": the base model without any adapter
    # What the teacher sees besides the caption: the training picture by a vision tower's eyes
    # ("vision_language"), or its latents in the transformer ("reference"); "auto" is the base model's own.
    teacher_context: str = "auto"
    ema_decay: float = 0.9999  # per optimizer step; 0.9 and faster lets the teacher drift, 1 never moves it
    rank: int = 64
    lora_alpha: float = (
        0.0  # the LoRA's strength is lora_alpha / rank; 0 means twice the rank, as in the paper
    )

    resolution: int = 512  # pixels; a picture is cropped to about resolution x resolution in area
    precision: str = "auto"  # the frozen base: "auto" is bfloat16 on CUDA and float32 elsewhere
    quantization: str = "none"  # "none" or "nf4": the frozen base's linear layers in 4 bits
    gradient_checkpointing: bool = True  # less memory, about a third more time
    device: str = "auto"  # "auto" takes CUDA where there is one
    seed: int = 0

    preview_every: int = 50  # optimizer steps between previews; 0 for none
    preview_prompts: tuple[str, ...] = ()  # prompts of the fixed-seed samples; empty: the first captions
    stop_early: bool = False  # ends where the health has stopped improving
    checkpoint_every: int = 50  # optimizer steps between checkpoints: what a crash can lose at most

    def __post_init__(self):
        object.__setattr__(self, "preview_prompts", tuple(self.preview_prompts))
        if problems := self._problems():
            raise ConfigError("\n".join(problems))

    def _problems(self) -> list[str]:
        at_least = {
            **dict.fromkeys(
                ("steps", "rollout_steps", "num_inference_steps", "batch_size", "micro_batch"), 1
            ),
            **dict.fromkeys(("rank", "checkpoint_every", "resolution"), 1),
            **dict.fromkeys(("preview_every", "seed", "ema_decay", "lora_alpha"), 0),
        }
        choices = {
            "objective": tuple(OBJECTIVES),
            "optimizer": ("adamw8bit", "adamw"),
            "loss": ("denoised", "velocity"),
            "teacher": ("ema", "base"),
            "teacher_context": ("auto", "vision_language", "reference"),
            "precision": ("auto", "float32", "bfloat16"),
            "quantization": ("none", "nf4"),
            "device": ("auto", "cpu", "cuda"),
        }
        problems = [
            f"`{name}` must be at least {low}, got {getattr(self, name)}."
            for name, low in at_least.items()
            if not getattr(self, name) >= low  # so written, not-a-number is refused too
        ]
        problems += [
            f"`{name}` must be one of {', '.join(allowed)}, got {getattr(self, name)!r}."
            for name, allowed in choices.items()
            if getattr(self, name) not in allowed
        ]
        problems += [
            f"`{name}` must be greater than 0, got {getattr(self, name)}."
            for name in ("learning_rate", "max_grad_norm")
            if not getattr(self, name) > 0
        ]
        if self.seed >= 2**32:
            problems.append(f"`seed` must be less than 2**32, got {self.seed}.")
        if self.ema_decay > 1:
            problems.append(f"`ema_decay` must be between 0 and 1, got {self.ema_decay}.")
        if self.rollout_steps >= 1 and self.num_inference_steps % self.rollout_steps:
            problems.append(
                f"`rollout_steps` must divide `num_inference_steps` ({self.num_inference_steps}), so that"
                " the roll-out visits only sigmas that the finished model is asked for, got"
                f" {self.rollout_steps}."
            )
        if self.micro_batch >= 1 and self.batch_size % self.micro_batch:
            problems.append(
                f"`micro_batch` must divide `batch_size` ({self.batch_size}), got {self.micro_batch}."
            )
        return problems

    @property
    def has_ema_teacher(self) -> bool:
        """Whether there is a teacher with weights of its own, the student's slow copy."""
        return self.teacher == "ema" and OBJECTIVES[self.objective].walks

    @property
    def passes(self) -> tuple[int, int]:
        """A step's passes for each example: the student's, with their way back, and a teacher's."""
        facts = OBJECTIVES[self.objective]
        states = self.rollout_steps if facts.walks else 1
        return states * facts.passes, states * facts.walks

    @property
    def strength(self) -> float:
        """What the LoRA's B @ A is multiplied by: lora_alpha / rank."""
        return self.lora_alpha / self.rank if self.lora_alpha else 2.0

    @property
    def minimum_side(self) -> int:
        """Shortest side, in pixels, that a training picture may have."""
        return min(256, self.resolution)


def make_config(settings: dict) -> TrainConfig:
    """A `TrainConfig` from plain values (JSON, TOML); unknown keys and wrong types raise `ConfigError`."""
    types = typing.get_type_hints(TrainConfig)
    problems = [_unknown(key, types) for key in settings.keys() - types]
    values = {}
    for key, value in settings.items():
        if key not in types:
            continue
        if types[key] is float and type(value) is int:
            value = float(value)
        if types[key] == tuple[str, ...]:
            right = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
        else:
            right = type(value) is types[key]
        if not right:
            problems.append(f"`{key}` must be {_type_name(types[key])}, got {value!r}.")
        values[key] = value
    if problems:
        raise ConfigError("\n".join(sorted(problems)))
    return TrainConfig(**values)


def parse_setting(text: str) -> tuple[str, object]:
    """Key and value of a command line's `key=value`; the text is read as the setting's own type."""
    key, equals, value = text.partition("=")
    types = typing.get_type_hints(TrainConfig)
    if not equals:
        raise ConfigError(f"`--set {text}`: write key=value, with a key among {', '.join(types)}.")
    if key not in types:
        raise ConfigError(_unknown(key, types))
    try:
        if types[key] is bool:
            return key, {"true": True, "false": False}[value.lower()]
        if types[key] == tuple[str, ...]:
            return key, tuple(json.loads(value)) if value.startswith("[") else (value,)
        return key, types[key](value)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"`{key}` must be {_type_name(types[key])}, got {value!r}.") from error


def _unknown(key: str, types: dict) -> str:
    near = difflib.get_close_matches(key, types, n=1)
    hint = f"Did you mean `{near[0]}`?" if near else f"There are: {', '.join(types)}."
    return f"There is no setting `{key}`. {hint}"


def _type_name(kind) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return names.get(kind, "a list of texts")


def save_config(config: TrainConfig, path: Path) -> None:
    """Writes the configuration as JSON."""
    replace_file(path, json.dumps({**stamp(SCHEMA), **dataclasses.asdict(config)}, indent=2))


def load_config(path: Path) -> TrainConfig:
    """Reads what `save_config` wrote; ValueError for what holds no settings.

    Raises `ConfigError` for settings that cannot work, and for those of a later version of the program.
    """
    settings = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(settings, dict) or "base_model" not in settings:  # it was written whole
        raise ValueError(f"{path.name} holds no settings.")
    check_schema(settings, SCHEMA, path.parent.name, ConfigError)
    return make_config(without_stamp(settings))


def memory_levers(config: TrainConfig) -> list[tuple[str, object]]:
    """The settings that would save memory, in the order of MEMORY_LEVERS."""
    levers = []
    for name, value in MEMORY_LEVERS.items():
        now = getattr(config, name)
        at_most = isinstance(value, int) and not isinstance(value, bool)
        if now > value if at_most else now != value:
            levers.append((name, value))
    return levers


@dataclass(frozen=True)
class Preset:
    """A named starting point: what differs from the defaults, a label and a sentence for the person."""

    name: str
    label: str
    description: str
    settings: dict


def list_presets() -> list[Preset]:
    """All presets of the presets folder, by name."""
    return [load_preset(path.stem) for path in sorted(PRESETS.glob("*.toml"))]


def presets_for(base_model: str) -> list[Preset]:
    """The presets that were made for a base model, the one for a subject first: what most people come for."""
    own = [preset for preset in list_presets() if preset.settings.get("base_model") == base_model]
    return sorted(own, key=lambda preset: not preset.name.endswith("subject"))


def load_preset(name: str) -> Preset:
    """One preset; `ConfigError` names the ones there are, or what the file sets that does not exist."""
    paths = {path.stem: path for path in sorted(PRESETS.glob("*.toml"))}
    if name not in paths:  # a name is looked up, never made into a path: it may come from anywhere
        raise ConfigError(f"There is no preset `{name}`. There are: {', '.join(paths)}.")
    settings = tomllib.loads(paths[name].read_text(encoding="utf-8"))
    label, description = settings.pop("label"), settings.pop("description")
    make_config(settings)
    return Preset(name, label, description, settings)
