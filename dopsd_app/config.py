"""What a training run is asked to do: one flat value, saved with the run."""

import dataclasses
import difflib
import json
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dopsd_app.errors import KnownFailure
from dopsd_app.files import replace_file
from dopsd_app.schema import check_schema, stamp, without_stamp

PRESETS = Path(__file__).parent.parent / "presets"
SCHEMA = 1  # of a run's config.json, and with it of the run's whole folder
SUBJECT, STYLE, EDIT = KINDS = ("subject", "style", "edit")  # what is taught: presets' names end with it
DEFAULT_PRESET = "pocket"  # the built-in base, which runs anywhere
# Where the plan's step shows a setting: at once, or folded in one of these groups.
MAIN, LEARNING, MEMORY, PREVIEWS = PLACES = ("main", "learning", "memory", "previews")
GONE = (
    "stop_early",
    "gradient_checkpointing",
)  # settings of earlier versions: runs and drafts of those still hold them


@dataclass(frozen=True)
class ObjectiveFacts:
    """What page, plan and model card know of an objective; what it computes is in `method/objectives`."""

    name: str
    paper: str  # number on arXiv
    about: str  # how a model card goes on behind the name
    label: str = ""  # as the page offers it; empty where that leaves it to the command line
    walks: bool = False  # visits the states of a roll-out, and asks a teacher at each
    shows_rollout: bool = False  # these states are shown while it trains
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
        label="D-OPSD",
        walks=True,
        shows_rollout=True,
        teacher_contexts=True,
    ),
    "sft": ObjectiveFacts(
        "SFT",
        "2210.02747",
        "ordinary fine-tuning on the training pictures",
        label="SFT (ordinary fine-tuning, for comparison)",
        latents=True,
    ),
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


@dataclass(frozen=True)
class Setting:
    """What is known of a field of `TrainConfig` besides its type and its default.

    The page, the command line and the checks read it here, and nowhere else.
    """

    label: str  # what the page and its messages call it
    info: str = ""  # what it does, in a few words
    page: str | None = None  # one of PLACES; None where the page does not show it
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None  # the greatest number that is too small
    choices: Mapping[str, str] = field(default_factory=dict)  # value: what the page calls it
    rare: tuple[str, ...] = ()  # choices that the page offers only where they are chosen already
    lever: int | str | None = None  # the value that saves memory; of a number, the most that saves it

    def problem(self, name: str, value) -> str | None:
        """What is wrong with a value of the right type; None where nothing is."""
        # Written so that not-a-number is refused too.
        right = (
            (self.minimum is None or value >= self.minimum)
            and (self.maximum is None or value <= self.maximum)
            and (self.above is None or value > self.above)
            and (not self.choices or value in self.choices)
        )
        got = repr(value) if self.choices else value
        return None if right else f"`{name}` must be {self.allowed}, got {got}."

    @property
    def allowed(self) -> str:
        """Its bounds or choices in words; empty for a setting that may be anything of its type."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.above is not None:
            return f"greater than {self.above}"
        if self.maximum is not None:
            return f"between {self.minimum} and {self.maximum}"
        return "" if self.minimum is None else f"at least {self.minimum}"

    def saves_memory(self, value) -> bool:
        """Whether its lever would take less memory than this value."""
        if self.lever is None:
            return False
        return value > self.lever if isinstance(self.lever, int) else value != self.lever


def _setting(default, label: str, info: str = "", page: str | None = None, **facts) -> Any:
    """A field of `TrainConfig` with its `Setting`."""
    return field(default=default, metadata={"setting": Setting(label, info, page, **facts)})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of one run; a preset holds what differs from the defaults.

    These are near the released code's for Z-Image-Turbo: docs/method.md says where they deviate, and why.

    The page shows them in this order, and levers are advised in it: first what changes only the time.
    Raises `ConfigError` when made with values that cannot work.
    """

    base_model: str = _setting(
        "pocket-turbo",
        "Base model",
        "A name that `download --help` lists, a repository on the Hub, or a folder",
    )
    # A run that has begun keeps the commit.
    revision: str = _setting("", "Revision", "Of a repository on the Hub: a branch, a tag or a commit")
    name: str = _setting("", "Name", "Names the run and the LoRA", MAIN)
    trigger_word: str = _setting("", "Trigger word", "Stands for the concept in captions and prompts")

    objective: str = _setting(
        "dopsd",
        "Objective",
        "What the LoRA is trained by",
        LEARNING,
        choices={name: facts.label or facts.name for name, facts in OBJECTIVES.items()},
        rare=tuple(name for name, facts in OBJECTIVES.items() if not facts.label),
    )
    # Optimizer steps, as are all that other settings count.
    steps: int = _setting(1000, "Steps", "How often the LoRA is changed a little", MAIN, minimum=1)
    learning_rate: float = _setting(
        1e-4, "Learning rate", "Higher learns faster and breaks sooner", LEARNING, above=0
    )
    max_grad_norm: float = _setting(
        1.0, "Gradient clipping", "The norm that gradients are clipped to", above=0
    )
    batch_size: int = _setting(4, "Pictures per step", page=LEARNING, minimum=1)
    micro_batch: int = _setting(
        1, "Pictures at a time", "Changes memory and speed, never the result", MEMORY, minimum=1, lever=1
    )
    # The optimizer of bitsandbytes needs a quarter of the other's memory.
    optimizer: str = _setting(
        "adamw8bit",
        "Optimizer",
        page=MEMORY,
        choices={"adamw8bit": "AdamW, 8 bits: less memory", "adamw": "AdamW"},
        lever="adamw8bit",
    )
    # Of the frozen base, its linear layers.
    quantization: str = _setting(
        "auto",
        "Base model's weights",
        page=MEMORY,
        choices={
            "auto": "Automatic",
            "none": "As they are",
            "int8": "8 bits",
            "nf4": "4 bits",
        },
        lever="auto",
    )
    # In GB of 2^30 bytes, as cards are sold; the rest of the memory plan follows from it.
    memory_limit: float = _setting(
        0.0, "Memory to use", "GB of the card; 0: what is free when it starts", MEMORY, minimum=0
    )
    # Of a picture, the area is about resolution x resolution after the crop.
    resolution: int = _setting(
        512, "Resolution", "Pixels: pictures are cropped to about this, squared", MAIN, minimum=1, lever=512
    )
    rank: int = _setting(
        64, "Rank", "The size of the LoRA: higher holds more, and needs more", MAIN, minimum=1, lever=16
    )
    # The LoRA's strength is lora_alpha / rank; twice the rank is the paper's.
    lora_alpha: float = _setting(0.0, "LoRA alpha", "0: twice the rank", minimum=0)

    # K of the paper: in each roll-out the student visits so many states, and learns from them.
    rollout_steps: int = _setting(4, "States per roll-out", "Must divide the model's few steps", minimum=1)
    # Previews and pictures use them.
    num_inference_steps: int = _setting(
        8, "The model's few steps", "As the base model was made for", minimum=1
    )
    # The released code's loss, or the paper's.
    loss: str = _setting("denoised", "Loss", choices={"denoised": "Denoised picture", "velocity": "Velocity"})
    # The base model is without any adapter.
    teacher: str = _setting(
        "ema", "Teacher", page=LEARNING, choices={"ema": "Slow copy of the student", "base": "The base model"}
    )
    # 0.9 and faster lets the teacher drift, 1 never moves it.
    ema_decay: float = _setting(
        0.9999, "Teacher's decay", "How slowly it follows the student, per step", minimum=0, maximum=1
    )
    # The picture by a vision tower's eyes, or its latents in the transformer; or the base model's own choice.
    teacher_context: str = _setting(
        "auto",
        "Teacher's context",
        "What it sees besides the caption",
        choices={
            "auto": "Automatic",
            "vision_language": "The training picture by a vision tower's eyes",
            "reference": "The training picture's latents",
        },
    )
    # Of that picture, the area is between the squares of these: what is larger or smaller is scaled.
    teacher_picture_minimum: int = _setting(
        0, "Teacher's picture, at least", "Pixels of a square's side; 0: as the base model says", minimum=0
    )
    teacher_picture_maximum: int = _setting(
        0, "Teacher's picture, at most", "Pixels of a square's side; 0: as the base model says", minimum=0
    )

    # Of the frozen base: bfloat16 on CUDA and float32 elsewhere, unless a precision is chosen.
    precision: str = _setting(
        "auto", "Arithmetic", choices={"auto": "Automatic", "float32": "32 bits", "bfloat16": "16 bits"}
    )
    preview_every: int = _setting(50, "Steps between previews", "0: none", PREVIEWS, minimum=0)
    preview_prompts: tuple[str, ...] = _setting(
        (), "Preview prompts", "One per line, drawn while it trains; empty: the first captions", MAIN
    )
    checkpoint_every: int = _setting(
        50, "Steps between checkpoints", "What a crash can lose at most", PREVIEWS, minimum=1
    )
    seed: int = _setting(0, "Seed", page=LEARNING, minimum=0, maximum=2**32 - 1)  # as many as generators take
    # Automatic takes CUDA where there is one.
    device: str = _setting(
        "auto",
        "Device",
        page=MEMORY,
        choices={"auto": "Automatic", "cpu": "Processor", "cuda": "NVIDIA card"},
    )
    # By its UUID, as `nvidia-smi -L` lists it. The page shows it where there are several.
    card: str = _setting("", "Card", "Of several: automatic takes the best that is free", MAIN)

    def __post_init__(self):
        object.__setattr__(self, "preview_prompts", tuple(self.preview_prompts))
        if problems := self._problems():
            raise ConfigError("\n".join(problems))

    def _problems(self) -> list[str]:
        found = (setting.problem(name, getattr(self, name)) for name, setting in SETTINGS.items())
        problems = [problem for problem in found if problem]
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


SETTINGS: dict[str, Setting] = {
    each.name: each.metadata["setting"] for each in dataclasses.fields(TrainConfig)
}


def make_config(settings: dict) -> TrainConfig:
    """A `TrainConfig` from plain values (JSON, TOML); unknown keys and wrong types raise `ConfigError`."""
    types = typing.get_type_hints(TrainConfig)
    problems = [_unknown(key, types) for key in settings.keys() - types]
    values: dict[str, Any] = {}
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


def parse_setting(text: str) -> tuple[str, Any]:
    """Key and value of a command line's `key=value`; the text is read as the setting's own type."""
    key, equals, value = text.partition("=")
    types = typing.get_type_hints(TrainConfig)
    if not equals:
        raise ConfigError(f"`--set {text}`: write key=value, with a key among {', '.join(types)}.")
    if key not in types:
        raise ConfigError(_unknown(key, types))
    try:
        if types[key] == tuple[str, ...]:
            return key, tuple(json.loads(value)) if value.startswith("[") else (value,)
        return key, types[key](value)
    except ValueError as error:
        raise ConfigError(f"`{key}` must be {_type_name(types[key])}, got {value!r}.") from error


def _unknown(key: str, types: dict) -> str:
    near = difflib.get_close_matches(key, types, n=1)
    hint = f"Did you mean `{near[0]}`?" if near else f"There are: {', '.join(types)}."
    return f"There is no setting `{key}`. {hint}"


def _type_name(kind) -> str:
    names = {int: "a whole number", float: "a number", str: "a text"}
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
    return make_config(without_gone(without_stamp(settings)))


def without_gone(settings: dict) -> dict:
    """What a run or a draft of an earlier version holds, without the settings that are gone."""
    return {name: value for name, value in settings.items() if name not in GONE}


def memory_levers(config: TrainConfig) -> list[tuple[str, object]]:
    """The settings that would save memory and the values that do, first what changes only the time."""
    return [
        (name, setting.lever)
        for name, setting in SETTINGS.items()
        if setting.saves_memory(getattr(config, name)) and getattr(config, name) != "nf4"
    ]


def list_settings() -> str:
    """All settings with their defaults, what they do and what they may be: a line each."""
    lines = []
    for name, setting in SETTINGS.items():
        default = getattr(TrainConfig(), name)
        shown = json.dumps(default) if isinstance(default, tuple) else default
        bounds = f" ({setting.allowed})" if setting.allowed else ""
        info = f". {setting.info}" if setting.info else ""
        lines.append(f"  {f'{name}={shown}':28}  {setting.label}{bounds}{info}")
    return "\n".join(lines)


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
    """The presets that were made for a base model: first for a subject, which most people come for.

    The released code's settings are the last: they are for comparison.
    """
    own = [preset for preset in list_presets() if preset.settings.get("base_model") == base_model]
    order = (*KINDS, "reference")  # the last words of their names
    return sorted(own, key=lambda preset: [not preset.name.endswith(word) for word in order])


def preset_for(base_model: str, kind: str) -> str | None:
    """The preset of a base model for this kind: the one that names it, else the base's first, if any."""
    own = [preset.name for preset in presets_for(base_model)]
    return next((name for name in own if name.endswith(kind)), next(iter(own), None))


def load_preset(name: str) -> Preset:
    """One preset; `ConfigError` names the ones there are, or what the file sets that does not exist."""
    paths = {path.stem: path for path in sorted(PRESETS.glob("*.toml"))}
    if name not in paths:  # a name is looked up, never made into a path: it may come from anywhere
        raise ConfigError(f"There is no preset `{name}`. There are: {', '.join(paths)}.")
    settings = tomllib.loads(paths[name].read_text(encoding="utf-8"))
    label, description = settings.pop("label"), settings.pop("description")
    make_config(settings)
    return Preset(name, label, description, settings)
