"""Does the teacher see the concept? Asked before training, which can teach only what the teacher draws."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cosine_similarity

from dopsd_app.checks.previews import draw, grid, save_picture
from dopsd_app.checks.verdict import CHECKED, CheckRow, judge_rows, rows_drawn, save_check
from dopsd_app.config import TrainConfig
from dopsd_app.data.pictures import Example, most_sources
from dopsd_app.method.encode import read_pictures
from dopsd_app.models.architecture import BY_EYES
from dopsd_app.models.loaded_model import LoadedModel
from dopsd_app.models.protocol import BaseModel
from dopsd_app.progress import PhaseProgress

DRAWN = ("student", "teacher", "control")


def teacher_check(
    model: LoadedModel, config: TrainConfig, examples: Sequence[Example], folder: Path
) -> Iterator[PhaseProgress]:
    """Draws up to 4 examples untrained, from one noise each, and scores what the teacher makes of them.

    The pictures appear in `folder` one by one: `0_source.webp` (what an edit starts from), `0_crop.webp`,
    `0_student.webp` (from the caption), `0_teacher.webp` (from caption and picture), `0_control.webp` (from
    the caption and an even grey), `1_...`; teacher_check.json is the last. See `verdict` for how they are
    read and what the score means.
    """
    base_model, shown = model.base_model, tuple(examples[:CHECKED])
    base_model.architecture.check_sources(most_sources(shown), config.base_model)
    sets = [read_pictures(example, config, base_model) for example in shown]
    crops = [pictures.training_picture for pictures in sets]
    model.load_encoders()
    controls = [control_picture(picture) for picture in crops]
    encoded = []
    for done, (example, pictures, control) in enumerate(zip(shown, sets, controls, strict=True)):
        yield PhaseProgress("encoding", done, len(shown))
        caption = example.captions[0]
        encoded.append(
            (
                base_model.encode(pictures, caption, "student"),
                base_model.encode(pictures, caption, "teacher"),
                base_model.encode(replace(pictures, picture=control), caption, "teacher"),
            )
        )
    model.load_transformer()
    model.unload_lora()
    drawn, total = [], len(DRAWN) * len(shown)
    for index, (pictures, conditionings) in enumerate(zip(sets, encoded, strict=True)):
        picture = pictures.training_picture
        for source in pictures.sources[:1]:
            save_picture(source, folder / f"{index}_source.webp")
        save_picture(picture, folder / f"{index}_crop.webp")
        for who, conditioning in zip(DRAWN, conditionings, strict=True):
            yield PhaseProgress("drawing", len(drawn), total)
            drawn.append(draw(base_model, config, conditioning, index, (picture.height, picture.width)))
            save_picture(drawn[-1], folder / f"{index}_{who}.webp")
    features = [features_of(base_model, pictures) for pictures in (crops, controls, *_by_drawer(drawn))]
    if not model.encoders:
        base_model.free_encoders()  # the vision tower came for the features
    edits = any(pictures.sources for pictures in sets)
    save_check(judge_rows(compare(*features), config.base_model, edits=edits), folder)
    yield PhaseProgress("drawing", total, total)


def _by_drawer(drawn: list[Image.Image]) -> list[list[Image.Image]]:
    return [drawn[place :: len(DRAWN)] for place in range(len(DRAWN))]


def control_picture(like: Image.Image) -> Image.Image:
    """What the teacher is shown instead, to see what any picture would do: an even grey of the same size."""
    return Image.new("RGB", like.size, (128, 128, 128))


def features_of(base_model: BaseModel, pictures: list[Image.Image]) -> tuple[Tensor, ...]:
    """What the teacher's own eyes see in pictures (N, D), where it has any, and their colours (N, 64).

    The eyes alone would be judge in their own cause: what they are blind to, they would not miss.
    """
    colours = torch.stack([colours_of(picture) for picture in pictures]).to(base_model.device)
    if base_model.teacher_context != BY_EYES:
        return (colours,)
    vision = torch.stack([base_model.picture_features(picture).mean(0) for picture in pictures])
    return vision, colours.to(vision)


def colours_of(picture: Image.Image) -> Tensor:
    """How much there is of each of 64 colours (64,): roots of shares, whose cosine is Bhattacharyya's."""
    levels = np.asarray(picture, dtype=np.int64) // 64 @ (16, 4, 1)
    return torch.from_numpy(np.bincount(levels.ravel(), minlength=64) / levels.size).sqrt()


Features = Sequence[Tensor]  # of each kind, (N, D): the same kinds for all


def compare(
    crops: Features, controls: Features, student: Features, teacher: Features, control: Features
) -> tuple[CheckRow, ...]:
    """How like the training pictures the drawn ones are: by that kind of features that finds them less alike.

    Features of any two pictures are alike; what is common to all is taken off, so that the rest counts. The
    teacher's pictures have no part in that: they would move the measure that they are measured with.
    """
    kinds = []
    for kind in zip(crops, controls, student, teacher, control, strict=True):
        common = torch.cat(kind[:3]).mean(0)
        kinds.append([cosine_similarity(drawn - common, kind[0] - common) for drawn in kind[2:]])
    lower = torch.tensor([[x.tolist() for x in kind] for kind in kinds]).amin(0)  # (3, N)
    return tuple(CheckRow(*row) for row in lower.T.tolist())


def save_sheet(folder: Path, path: Path) -> None:
    """A sheet of a check's pictures: a row each of source, picture, the student's view and the teacher's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grid([[Image.open(file) for file in row] for row in rows_drawn(folder)]).save(path)
