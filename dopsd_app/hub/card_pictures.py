"""The generated pictures that a person chose for a run's card, kept in the run folder."""

import json
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dopsd_app.errors import KnownFailure
from dopsd_app.files import read_value, replace_file, retry
from dopsd_app.jobs.drawing import PictureRequest, is_of_today, read_drawing
from dopsd_app.jobs.runs import Run

MAX_PICTURES = 5


@dataclass(frozen=True)
class Chosen:
    """What is kept beside a picture."""

    prompt: str


def card_pictures(run: Run) -> list[tuple[Path, str]]:
    """The chosen pictures with their prompts, in the order of choosing."""
    kept = []
    for file in sorted((run.path / "card").glob("*.png")):
        with suppress(OSError, ValueError):  # without its prompt, a picture does not count
            kept.append((file, read_value(Chosen, file.with_suffix(".json").read_bytes()).prompt))
    return kept


def keep_picture(run: Run, drawing_id: str, row: int = 0, column: int = 1) -> None:
    """Puts a picture of a drawing, which the run's LoRA has drawn, on its card, at most MAX_PICTURES of them.

    Its place is counted from 0, and the first column is the base's.
    """
    drawing = read_drawing(run.runs_dir, drawing_id)
    asked = drawing.asked
    if (
        not isinstance(asked, PictureRequest)
        or asked.run_id != run.id
        or not (0 <= row < len(asked.rows) and 0 <= column < len(asked.columns))
        or not asked.columns[column].strength
        or not drawing.cell(row, column).exists()
    ):
        raise KnownFailure("This picture was not drawn with this LoRA. Draw one first.")
    if not is_of_today(run, drawing):
        raise KnownFailure("This picture is of an earlier training of this LoRA. Draw it again first.")
    kept = card_pictures(run)
    if len(kept) >= MAX_PICTURES:
        raise KnownFailure(f"A card has at most {MAX_PICTURES} pictures. Take them off to choose others.")
    number = int(kept[-1][0].stem) + 1 if kept else 1
    file = run.path / "card" / f"{number:02}.png"
    file.parent.mkdir(exist_ok=True)
    # The prompt first: a picture counts only when it is there.
    replace_file(file.with_suffix(".json"), json.dumps({"prompt": asked.rows[row].prompt}))
    replace_file(file, drawing.cell(row, column).read_bytes())


def clear_pictures(run: Run) -> None:
    """Takes all pictures off the card."""
    if (run.path / "card").exists():
        retry(lambda: shutil.rmtree(run.path / "card"))
