"""A picture with its captions, as training takes it, and what is said of one."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from dopsd_app.data.crops import MIDDLE


@dataclass(frozen=True)
class Example:
    image: Path
    captions: tuple[str, ...]  # one is drawn per step
    source_images: tuple[Path, ...] = ()  # editing: the pictures to start from
    focus: tuple[float, float] = MIDDLE  # where the crop lies, as in `crops.crop`
    caption_file: Path | None = field(default=None, compare=False)  # that was read for it


@dataclass(frozen=True)
class Note:
    picture: str  # as in Problem
    message: str  # what was repaired or left out
    caption_file: Path | None = field(default=None, compare=False)  # which belongs to no picture


def most_sources(examples: Iterable[Example]) -> int:
    """The most pictures to start from that one of these has."""
    return max((len(example.source_images) for example in examples), default=0)


def natural_order(name: str) -> tuple:
    """For sorting: 2.png before 10.png."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name.casefold())], name
