"""Student and teacher conditioning, once before training: kept on disk, then the encoders leave."""

import hashlib
import json
from collections.abc import Callable, Generator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from dopsd_app.config import TrainConfig
from dopsd_app.data.pictures import Example, bucket, crop, load_picture
from dopsd_app.errors import KnownFailure
from dopsd_app.files import replace_file
from dopsd_app.models.catalog import Place, find_base_model
from dopsd_app.models.protocol import BaseModel, Conditioning
from dopsd_app.progress import PhaseProgress


@dataclass(frozen=True)
class EncodedExample:
    """One training picture; `student` and `teacher` hold one conditioning per caption, in the same order."""

    student: tuple[Conditioning, ...]
    teacher: tuple[Conditioning, ...]
    height: int  # pixels, of the crop
    width: int


@dataclass(frozen=True)
class Encoded:
    """All that the transformer will be told during a run."""

    examples: tuple[EncodedExample, ...]
    prompts: tuple[Conditioning, ...]  # of the preview prompts, as the student sees them
    neutral: tuple[Conditioning, ...]  # of the base's neutral prompts, likewise


def crop_example(example: Example, config: TrainConfig, base_model: BaseModel) -> Image.Image:
    """The training picture as the student is to draw it and the teacher sees it."""
    picture = load_picture(example.image)
    return crop(picture, *bucket(*picture.size, config.resolution, base_model.picture_multiple))


def encode_examples(
    base_model: BaseModel,
    config: TrainConfig,
    examples: tuple[Example, ...],
    prompts: tuple[str, ...],
    neutral: tuple[str, ...],
    cache: Path,
) -> Generator[PhaseProgress, None, Encoded]:
    """Encodes examples and prompts; the encoders are loaded only for what `cache` does not hold yet.

    Raises `KnownFailure` if the teacher were to see the same as the student: nothing could be learned.
    """
    encoder = _Encoder(base_model, config, cache)
    total, encoded = len(examples), []
    for done, example in enumerate(examples):
        yield PhaseProgress("encoding", done, total)
        picture = crop_example(example, config, base_model)
        student = tuple(encoder.student(caption) for caption in example.captions)
        teacher = tuple(encoder.teacher(picture, caption) for caption in example.captions)
        if any(_equal(*pair) for pair in zip(student, teacher, strict=True)):
            raise KnownFailure(
                f"The teacher sees the same as the student for {example.image.name}, so nothing can be"
                " learned. Check the vision tower of the base model's folder."
            )
        encoded.append(EncodedExample(student, teacher, picture.height, picture.width))
    told = (tuple(encoder.student(prompt) for prompt in group) for group in (prompts, neutral))
    result = Encoded(tuple(encoded), *told)
    encoder.free()
    yield PhaseProgress("encoding", total, total)
    return result


def _equal(student: Conditioning, teacher: Conditioning) -> bool:
    same_text = student.prompt_embeds.equal(teacher.prompt_embeds)
    return same_text and len(student.reference_latents) == len(teacher.reference_latents)


class _Encoder:
    """The base model's encoders behind a cache on disk: loaded for the first thing that it does not hold."""

    def __init__(self, base_model: BaseModel, config: TrainConfig, cache: Path):
        self.base_model, self.cache, self.loaded = base_model, cache, False
        self.identity = [
            _fingerprint(find_base_model(config.base_model, config.revision)),
            str(base_model.dtype),
            base_model.conditioning_version,
            version("transformers"),
        ]
        cache.mkdir(parents=True, exist_ok=True)

    def student(self, caption: str) -> Conditioning:
        return self._cached(["student", caption], lambda: self.base_model.encode_student(caption))

    def teacher(self, picture: Image.Image, caption: str) -> Conditioning:
        pixels = hashlib.sha256(picture.tobytes()).hexdigest()
        key = ["teacher", caption, picture.size, pixels]
        return self._cached(key, lambda: self.base_model.encode_teacher(picture, caption))

    def free(self) -> None:
        if self.loaded:
            self.base_model.free_encoders()

    def _cached(self, key: list, encode: Callable[[], Conditioning]) -> Conditioning:
        name = hashlib.sha256(json.dumps([self.identity, key]).encode()).hexdigest()
        path = self.cache / f"{name}.safetensors"
        if path.exists():
            try:
                return self._read(path)
            except SafetensorError:  # damaged on disk: encoded anew, for this run and all others
                pass
        if not self.loaded:
            self.base_model.load_encoders()
            self.loaded = True
        replace_file(path, save(_to_tensors(encode())))
        return self._read(path)

    def _read(self, path: Path) -> Conditioning:
        return _from_tensors(load_file(path, device=str(self.base_model.device)))


def _to_tensors(conditioning: Conditioning) -> dict[str, Tensor]:
    references = {f"reference_latents.{i}": x for i, x in enumerate(conditioning.reference_latents)}
    return {"prompt_embeds": conditioning.prompt_embeds.contiguous(), **references}


def _from_tensors(tensors: dict[str, Tensor]) -> Conditioning:
    references = tuple(tensors[f"reference_latents.{i}"] for i in range(len(tensors) - 1))
    return Conditioning(tensors["prompt_embeds"], references)


def _fingerprint(place: Place) -> list:
    """Changes with the base model's files, without reading gigabytes: names, sizes and times of change."""
    files = sorted({*place.folder.glob("*/*"), *place.vision_tower.iterdir()})
    files = [path for path in files if path.is_file()]
    return [
        (f"{path.parent.name}/{path.name}", path.stat().st_size, path.stat().st_mtime_ns) for path in files
    ]
