"""The proof that a base model works on this computer: looked at after it was fetched, before it is trusted.

What the product computes by itself is held against the official pipeline around the very same weights, and
the files against what the Hub says. Then one picture is drawn by student and teacher, and one training step
is made: what it takes replaces what was reckoned.
"""

import platform
import re
import sys
import time
import traceback
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dopsd_app import __version__
from dopsd_app.checks.previews import save_picture
from dopsd_app.config import OBJECTIVES, TrainConfig
from dopsd_app.data.pictures import read_examples
from dopsd_app.errors import KnownFailure, is_out_of_memory
from dopsd_app.method import randomness
from dopsd_app.method.encode import EncodedExample, read_pictures
from dopsd_app.method.objectives import make_objective
from dopsd_app.method.objectives.protocol import Material
from dopsd_app.method.rollout import sample
from dopsd_app.method.step import optimizer_step, prepare
from dopsd_app.models.architecture import BY_EYES, BaseModelFacts
from dopsd_app.models.base_report import (
    PICTURES,
    BaseReport,
    Finding,
    describe_base,
    report_folder,
    save_report,
)
from dopsd_app.models.catalog import ASSETS, BaseModelPaths, find_base_model, find_facts, model_family
from dopsd_app.models.file_check import check_files
from dopsd_app.models.load import load_base_model
from dopsd_app.models.memory_plan import NOTHING_SAVED, MemoryPlan
from dopsd_app.models.protocol import NO_PICTURES, BaseModel, Conditioning, Pictures
from dopsd_app.progress import PhaseProgress, words_for_time

NO_MEMORY = (
    "The memory does not suffice to check the base model with these settings. Close other programs, or choose"
    " settings that need less, then check it again."
)
# The folders of an absolute path, of either kind; a library's message may have doubled the backslashes.
PATH = r"""(?<![\w.])(?:[A-Za-z]:(?:\\{1,2}[^\\'"<>|:*?\n]+)*\\{1,2}|(?:/[^\s'"/:,;()]+)+/)"""
CHECKING = "checking"  # the phase
EXAMPLE = ASSETS / "examples" / "zorp"  # whose first picture the teacher sees
# Of two computations of the same with the same weights, the greatest difference relative to the greatest
# value: float32 is exact but for the order of sums; the official pipelines keep latents in bfloat16.
ALIKE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
SEEN = 1e-4  # least relative change of what the teacher reads, when its eyes see another picture
SIGMAS_ALIKE = 2e-3  # the catalog's have three digits
EVEN = 1.0  # standard deviation of a picture's levels, 0 to 255, up to which it is one even colour


@dataclass(frozen=True)
class Planned:
    """What a training step was planned to take."""

    seconds: float
    memory: int  # bytes at the most on the device that trains, without the program itself
    work: float  # operations
    slowness: float = 1.0  # times the seconds of a computer that does nothing else
    memory_plan: MemoryPlan = NOTHING_SAVED  # by which the step is made


@dataclass
class _Subject:
    """The base model in the check, and what the looks at it have found so far."""

    config: TrainConfig
    facts: BaseModelFacts
    base_model: BaseModel
    pictures: Pictures
    caption: str
    folder: Path  # for the drawn pictures
    texts: dict[str, Conditioning] = field(default_factory=dict)  # by caption, as the student reads them
    teacher: Conditioning | None = None  # caption and picture
    control: Conditioning | None = None  # caption and an even grey
    step_seconds: float = 0.0
    step_memory: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture."""
        width, height = self.pictures.training_picture.size
        return height, width

    @property
    def noise(self) -> Tensor:
        shape = self.base_model.latent_shape(*self.size)
        noise = randomness.draw_noise(shape, self.config.seed, 0, 0, randomness.PREVIEW)[None]
        return noise.to(self.base_model.device)

    @property
    def sigmas(self) -> Tensor:
        return self.base_model.sigmas(self.config.num_inference_steps, *self.size)

    @property
    def limit(self) -> float:
        return ALIKE.get(self.base_model.dtype, ALIKE[torch.bfloat16])


def check_base_model(
    config: TrainConfig, planned: Planned
) -> Generator[PhaseProgress | Finding, None, tuple[BaseReport, Path]]:
    """Looks at a base model as a run with this configuration would use it; the report is kept in a folder.

    It ends with the first look that finds something wrong. Raises `BaseModelError` where the model is not
    all here.
    """
    name = config.base_model
    place = find_base_model(name, config.revision, config.teacher_context)
    facts = find_facts(name, config.revision)
    context = facts.architecture.choose_context(config.teacher_context)
    findings: list[Finding] = []
    started = time.perf_counter()

    def note(look: str, passed: bool, sentence: str) -> Finding:
        told = _without_paths(sentence, place)
        findings.append(Finding(look, passed, told, time.perf_counter() - started))
        return findings[-1]

    try:
        sentence = yield from check_files(name, place)
        yield note("files", True, sentence)
    except KnownFailure as error:
        yield note("files", False, str(error))
    folder = report_folder(name, place, context)  # before it is loaded: loading changes no file
    subject: _Subject | None = None
    looks = iter(LOOKS.items())
    try:
        while all(finding.passed for finding in findings) and (look := next(looks, None)):
            yield PhaseProgress(CHECKING, len(findings) - 1, len(LOOKS))
            started = time.perf_counter()
            try:
                subject = subject or _load(config, planned.memory_plan, facts, folder)
                yield note(look[0], True, look[1](subject))
            except Exception as error:  # whatever it is: to find it is what this is for
                if is_out_of_memory(error):  # says nothing of the base model: with other settings it may do
                    raise KnownFailure(NO_MEMORY) from error
                traceback.print_exc()
                yield note(look[0], False, _explain(error))
    finally:
        if subject:  # what comes next needs the memory
            subject.base_model.free_encoders()
            subject.base_model.free_transformer()
    report = BaseReport(
        *describe_base(name, place.commit),
        teacher_context=context,
        findings=tuple(findings),
        machine=_machine(),
        settings=_settings(config, planned.memory_plan),
        work=planned.work,
        slowness=planned.slowness,
        planned_seconds=planned.seconds,
        planned_memory=planned.memory,
        seconds=subject.step_seconds if subject else 0.0,
        memory=subject.step_memory if subject else 0,
    )
    save_report(report, folder)
    return report, folder


def _load(config: TrainConfig, memory_plan: MemoryPlan, facts: BaseModelFacts, folder: Path) -> _Subject:
    base_model = load_base_model(config, memory_plan)
    example = read_examples(EXAMPLE, minimum_side=1).examples[0]
    pictures = read_pictures(example, config, base_model)
    folder.mkdir(parents=True, exist_ok=True)
    return _Subject(config, facts, base_model, pictures, example.captions[0], folder)


def _without_paths(sentence: str, place: BaseModelPaths) -> str:
    """A sentence for a report that may be sent: where things lie may tell who the person is."""
    for folder in filter(None, (place.folder, place.vision_tower)):
        for named in (f"{folder}/", f"{'/'.join(folder.parts[-2:])}/", f"{folder.name}/"):
            sentence = sentence.replace(named, "the base model's ")
    for folder in (place.folder, Path.home(), Path(sys.prefix)):
        sentence = sentence.replace(str(folder), "...").replace(repr(str(folder))[1:-1], "...")
    return re.sub(PATH, ".../", sentence)


def _explain(error: Exception) -> str:
    if isinstance(error, KnownFailure):
        return str(error)
    return f"It cannot be computed here. {type(error).__name__}: {error}"


# --- the looks, each a sentence on what was found, or an exception


def _look_at_schedule(subject: _Subject) -> str:
    """The scheduler's steps, against those that the model was distilled for."""
    family = find_facts(model_family(subject.config.base_model, subject.config.revision))
    steps = subject.config.num_inference_steps
    sigmas = subject.sigmas
    if not (sigmas[0] == 1 and sigmas[-1] == 0 and bool((sigmas.diff() < 0).all())):
        raise KnownFailure(f"The scheduler's steps do not go from 1 down to 0: {_list(sigmas)}.")
    if not family.native_sigmas or not family.native_steps:
        return f"{steps} steps, {_list(sigmas)}. Nobody tells which ones it was made for."
    native = subject.base_model.sigmas(family.native_steps, 1024, 1024)
    known = torch.tensor(family.native_sigmas)
    if (native.cpu() - known).abs().max() > SIGMAS_ALIKE:
        raise KnownFailure(
            f"Its scheduler walks {_list(native)} at 1024 x 1024 pixels, and {family.label} was made for"
            f" {_list(known)}: scheduler_config.json is not this model's. Fetch it again."
        )
    return f"The scheduler walks the steps that {family.label} was made for: {_list(native)}."


def _look_at_text(subject: _Subject) -> str:
    """The student's features against the pipeline's, and the teacher's encoder without a picture."""
    base_model = subject.base_model
    base_model.load_encoders()
    captions = (subject.caption, *subject.facts.neutral_prompts[:2])
    errors, blind = [], []
    for caption in captions:
        student = base_model.encode(NO_PICTURES, caption, "student")
        subject.texts[caption] = student
        errors.append(_difference(student.prompt_embeds, base_model.official_features(caption)))
        blind.append(_difference(base_model.teacher_text_features(caption), student.prompt_embeds))
    _require(
        max(errors) <= subject.limit,
        f"What the student reads differs from what the official pipeline reads by {max(errors):.2%}.",
    )
    _require(
        max(blind) <= subject.limit,
        f"Without a picture, what the teacher reads differs from what the student reads by {max(blind):.2%}.",
    )
    pictures = subject.pictures
    grey = Image.new("RGB", pictures.training_picture.size, (128, 128, 128))
    subject.teacher = base_model.encode(pictures, subject.caption, "teacher")
    subject.control = base_model.encode(replace(pictures, picture=grey), subject.caption, "teacher")
    for conditioning in (subject.teacher, subject.control):
        _require_finite(conditioning.prompt_embeds, "What the teacher sees")
    if base_model.teacher_context == BY_EYES:
        change = _difference(subject.teacher.prompt_embeds, subject.control.prompt_embeds)
        _require(
            change >= SEEN,
            "The teacher does not see: another picture changes nothing of what it reads. The weights of its"
            " eyes are not what they should be: fetch the model again.",
        )
    base_model.free_encoders()
    return (
        f"The student reads what the official pipeline reads (difference {max(errors):.1e}), and the teacher"
        f" without a picture the same ({max(blind):.1e})."
    )


def _look_at_rollout(subject: _Subject) -> str:
    """The product's few steps against the pipeline's, and how much a picture changes the teacher's."""
    base_model, steps = subject.base_model, subject.config.num_inference_steps
    base_model.load_transformer()
    assert subject.teacher and subject.control  # of the look before
    walks: list[tuple[Conditioning, tuple[Image.Image, ...]]] = [(subject.texts[subject.caption], ())]
    if base_model.teacher_context != BY_EYES:
        walks.append((subject.teacher, (subject.pictures.training_picture,)))
    errors = []
    for conditioning, references in walks:
        official = base_model.official_latents(conditioning, subject.noise, steps, references)
        own = [subject.noise]
        for pair in subject.sigmas.unfold(0, 2, 1):
            own.append(sample(base_model, [conditioning], own[-1], pair))
        _require_finite(own[-1], "What the model draws")
        errors += [_difference(a, b) for a, b in zip(own[1:], official, strict=True)]
    _require(
        max(errors) <= subject.limit,
        f"Its few steps differ from the official pipeline's by {max(errors):.2%}: this version of the"
        " program does not fit the installed diffusers, or the model is another one than it says.",
    )
    with torch.no_grad():
        seen = [
            base_model.predict_velocity(subject.noise, subject.sigmas[0], [conditioning])
            for conditioning in (subject.teacher, subject.control)
        ]
    change = _difference(*seen)
    return (
        f"{steps} steps as the official pipeline walks them (difference {max(errors):.1e}). A picture changes"
        f" what the teacher does by {change:.1%}."
    )


def _look_at_pictures(subject: _Subject) -> str:
    """One picture drawn by the student and one by the teacher, at the native steps; they are kept."""
    base_model = subject.base_model
    assert subject.teacher is not None  # of an earlier look
    drawn = [subject.pictures.training_picture]
    for conditioning in (subject.texts[subject.caption], subject.teacher):
        latents = sample(base_model, [conditioning], subject.noise, subject.sigmas)
        drawn.append(base_model.decode(latents)[0])
    for name, picture in zip(PICTURES, drawn, strict=True):
        save_picture(picture, subject.folder / name)
    for who, picture in zip(("student", "teacher"), drawn[1:], strict=True):
        spread = float(np.asarray(picture, dtype=np.float32).std())
        _require(spread > EVEN, f"The {who} draws one even colour: the autoencoder's weights are not right.")
    return "Student and teacher each drew a picture from one noise: look at them."


def _look_at_step(subject: _Subject) -> str:
    """One training step as a run makes it, after one that warms up."""
    base_model, config = subject.base_model, subject.config
    assert subject.teacher is not None  # of an earlier look
    on_card = base_model.device.type == "cuda"
    example = EncodedExample((subject.texts[subject.caption],), (subject.teacher,), *subject.size)
    wants_latents = OBJECTIVES[config.objective].latents
    picture = subject.pictures.training_picture
    latents = (base_model.encode_picture(picture),) if wants_latents else ()
    neutral = tuple(subject.texts[prompt] for prompt in subject.facts.neutral_prompts[:2])
    if on_card:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(base_model.device)
    optimizer = prepare(base_model, config)
    objective = make_objective(base_model, config, Material((example,), latents, neutral))
    for step in (1, 2):
        done = optimizer_step(base_model, config, (example,), objective, optimizer, step)
    _require(done.grad_norm > 0, "A training step changes nothing: its gradient is zero.")
    subject.step_seconds = done.seconds
    subject.step_memory = torch.cuda.max_memory_reserved(base_model.device) if on_card else 0
    held = f" and {subject.step_memory / 2**30:.1f} GB of the card" if on_card else ""
    return f"A training step takes {words_for_time(done.seconds)}{held}; loss {done.loss:.3g}."


LOOKS: dict[str, Callable[[_Subject], str]] = {
    "schedule": _look_at_schedule,
    "text and eyes": _look_at_text,
    "few steps": _look_at_rollout,
    "pictures": _look_at_pictures,
    "training step": _look_at_step,
}


def _difference(one: Tensor, other: Tensor) -> float:
    """The greatest difference, relative to the greatest value; infinite where shapes differ, or for NaN."""
    if one.shape != other.shape:
        return float("inf")
    difference = ((one.float() - other.float()).abs().max() / other.float().abs().max()).item()
    return difference if np.isfinite(difference) else float("inf")


def _require(right: bool, sentence: str) -> None:
    if not right:
        raise KnownFailure(sentence)


def _require_finite(values: Tensor, what: str) -> None:
    _require(bool(values.isfinite().all()), f"{what} is not a number: weights of this model are damaged.")


def _list(sigmas: Tensor) -> str:
    return ", ".join(f"{sigma:.3g}" for sigma in sigmas.tolist())


# --- where it was


def _machine() -> dict[str, str]:
    facts = {"program": __version__, "system": f"{platform.system()} {platform.machine()}"}
    facts["Python"] = platform.python_version()
    for package in ("torch", "diffusers", "transformers", "peft", "bitsandbytes"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not there"
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        facts["card"] = (
            f"{card.name}, {card.total_memory / 2**30:.1f} GB, compute capability {card.major}.{card.minor}"
        )
    return facts


def _settings(config: TrainConfig, memory_plan: MemoryPlan) -> dict[str, str]:
    names = ("objective", "resolution", "rollout_steps", "batch_size", "micro_batch", "rank", "precision")
    more = ("optimizer", "device")
    settings = {name: str(getattr(config, name)) for name in (*names, *more)}
    return settings | {name: str(value) for name, value in memory_plan.to_fields().items()}
