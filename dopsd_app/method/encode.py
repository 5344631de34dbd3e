"""Student and teacher conditioning, once before training: kept on disk, then the encoders leave."""

import hashlib
import json
import shutil
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from dopsd_app.config import OBJECTIVES, TrainConfig
from dopsd_app.data.crops import MIDDLE, crop, nearest_bucket
from dopsd_app.data.pictures import Example, hash_pixels, load_picture, most_sources
from dopsd_app.errors import KnownFailure
from dopsd_app.files import replace_file
from dopsd_app.models.architecture import Role
from dopsd_app.models.base_report import fingerprint
from dopsd_app.models.catalog import find_base_model
from dopsd_app.models.protocol import NO_PICTURES, BaseModel, Conditioning, Pictures
from dopsd_app.progress import PhaseProgress
from dopsd_app.schema import claim_folder

CACHE_SCHEMA = 1  # of the files in the cache: `_to_tensors`, under the hash of all that they follow from


@dataclass(frozen=True)
class EncodedExample:
    """One training picture; `student` and `teacher` hold one conditioning per caption, in the same order.

    `teacher` is empty where the objective asks no teacher that sees the picture.
    """

    student: tuple[Conditioning, ...]
    teacher: tuple[Conditioning, ...]
    height: int  # pixels, of the crop
    width: int


@dataclass(frozen=True)
class Prompt:
    """What is drawn in previews: a text, and the pictures that it starts from."""

    text: str
    sources: tuple[Path, ...] = ()


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the student sees it, and how its picture is to be drawn."""

    conditioning: Conditioning
    size: tuple[int, int]  # height and width in pixels: those of what it starts from, if of anything
    source: Image.Image | None = None  # the first of the pictures to start from, as the student sees it
    text: str = ""  # what it says; none of a neutral one


@dataclass(frozen=True)
class Encoded:
    """Every conditioning that a run needs."""

    examples: tuple[EncodedExample, ...]
    prompts: tuple[EncodedPrompt, ...]  # of the previews
    neutral: tuple[Conditioning, ...]  # of the base's neutral prompts, likewise


def crop_example(example: Example, config: TrainConfig, base_model: BaseModel) -> Image.Image:
    """The training picture as the student is to draw it and the teacher sees it."""
    return _crop(example.image, config, base_model, example.focus)


def read_pictures(example: Example, config: TrainConfig, base_model: BaseModel) -> Pictures:
    """All pictures of an example, each cropped to a size that the base model can take."""
    sources = read_sources(example.source_images, config, base_model, example.focus)
    return Pictures(crop_example(example, config, base_model), sources)


def read_sources(
    paths: Sequence[Path],
    config: TrainConfig,
    base_model: BaseModel,
    focus: tuple[float, float] = MIDDLE,
) -> tuple[Image.Image, ...]:
    """Pictures to start from, in training and when a finished LoRA draws.

    They are cropped as training pictures are, each in its own shape and where the crop of its result lies: of
    a pair of equal sizes, all that did not change then stands in the same place.
    """
    return tuple(_crop(path, config, base_model, focus) for path in paths)


def _crop(path: Path, config: TrainConfig, base_model: BaseModel, focus: tuple[float, float]) -> Image.Image:
    picture = load_picture(path)
    height, width = nearest_bucket(*picture.size, config.resolution, base_model.picture_multiple)
    return crop(picture, height, width, focus)


def encode_examples(
    base_model: BaseModel,
    config: TrainConfig,
    examples: tuple[Example, ...],
    prompts: tuple[Prompt, ...],
    neutral: tuple[str, ...],
    cache: Path,
) -> Generator[PhaseProgress, None, Encoded]:
    """Encodes examples and prompts; the encoders are loaded only for what `cache` does not hold yet.

    Raises `KnownFailure` if the teacher were to see the same as the student, for nothing could be learned,
    and for pictures to start from where the base model cannot edit.
    """
    base_model.architecture.check_sources(most_sources(examples), config.base_model)
    encoder = _Encoder(base_model, config, cache)
    total, encoded = len(examples), []
    for done, example in enumerate(examples):
        yield PhaseProgress("encoding", done, total)
        pictures = read_pictures(example, config, base_model)
        student = tuple(encoder.encode(pictures, caption, "student") for caption in example.captions)
        captions = example.captions if OBJECTIVES[config.objective].teacher_contexts else ()
        teacher = tuple(encoder.encode(pictures, caption, "teacher") for caption in captions)
        if any(_equal(*pair) for pair in zip(student, teacher, strict=False)):
            raise KnownFailure(
                f"The teacher sees the same as the student for {example.image.name}, so nothing can be"
                " learned. Check the files of the base model."
            )
        width, height = pictures.training_picture.size
        encoded.append(EncodedExample(student, teacher, height, width))
    drawn = tuple(_encode_prompt(encoder, prompt, encoded[0]) for prompt in prompts)
    others = tuple(encoder.encode(NO_PICTURES, prompt, "student") for prompt in neutral)
    result = Encoded(tuple(encoded), drawn, others)
    encoder.free()
    yield PhaseProgress("encoding", total, total)
    return result


def _encode_prompt(encoder: "_Encoder", prompt: Prompt, like: EncodedExample) -> EncodedPrompt:
    """One that starts from no picture is drawn as large as the example."""
    sources = read_sources(prompt.sources, encoder.config, encoder.base_model)
    conditioning = encoder.encode(Pictures(sources=sources), prompt.text, "student")
    if not sources:
        return EncodedPrompt(conditioning, (like.height, like.width), text=prompt.text)
    return EncodedPrompt(conditioning, (sources[0].height, sources[0].width), sources[0], prompt.text)


def _equal(student: Conditioning, teacher: Conditioning) -> bool:
    references = (student.reference_latents, teacher.reference_latents)
    same_text = student.prompt_embeds.equal(teacher.prompt_embeds)
    return same_text and len(references[0]) == len(references[1]) and all(map(torch.equal, *references))


def _content(picture: Image.Image) -> list:
    return [picture.size, hash_pixels(picture)]


class _Encoder:
    """The base model's encoders behind a cache on disk: loaded for the first thing that it does not hold."""

    def __init__(self, base_model: BaseModel, config: TrainConfig, cache: Path):
        self.base_model, self.config, self.cache, self.loaded = base_model, config, cache, False
        self.identity = [
            fingerprint(find_base_model(config.base_model, config.revision, config.teacher_context)),
            str(base_model.dtype),
            base_model.conditioning_version,
            version("transformers"),
        ]
        claim_folder(cache, CACHE_SCHEMA, f"The cache {cache}")

    def encode(self, pictures: Pictures, caption: str, role: Role) -> Conditioning:
        key = [role, caption]
        if role == "teacher":
            key += _content(pictures.training_picture)
            if self.base_model.teacher_context != "vision_language":  # left out, as in older caches
                key.append(self.base_model.teacher_context)
        if pictures.sources:
            key.append([_content(source) for source in pictures.sources])
        return self._cached(key, lambda: self.base_model.encode(pictures, caption, role))

    def free(self) -> None:
        if self.loaded:
            self.base_model.free_encoders()

    def _cached(self, key: list, encode: Callable[[], Conditioning]) -> Conditioning:
        name = hashlib.sha256(json.dumps([self.identity, key]).encode()).hexdigest()
        path = self.cache / f"{name}.safetensors"
        if path.exists():
            try:
                return self._read(path)
            except (SafetensorError, OSError, KeyError):  # damaged on disk: encoded anew, for all runs
                shutil.rmtree(path, ignore_errors=True)  # a folder in its place
        if not self.loaded:
            self.base_model.load_encoders()
            self.loaded = True
        replace_file(path, save(_to_tensors(encode())))
        return self._read(path)

    def _read(self, path: Path) -> Conditioning:
        return _from_tensors(load_file(path, device=str(self.base_model.device)))


def _to_tensors(conditioning: Conditioning) -> dict[str, Tensor]:
    references = {f"reference_latents.{i}": x for i, x in enumerate(conditioning.reference_latents)}
    tensors = {"prompt_embeds": conditioning.prompt_embeds, **references}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _from_tensors(tensors: dict[str, Tensor]) -> Conditioning:
    references = tuple(tensors[f"reference_latents.{i}"] for i in range(len(tensors) - 1))
    return Conditioning(tensors["prompt_embeds"], references)
