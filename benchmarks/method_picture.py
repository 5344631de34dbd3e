"""The methods' pictures side by side: python -m benchmarks.method_picture, once the test was run."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.concepts import SIDE, captions_of, concepts_of, training_pictures
from benchmarks.method import SHOWN
from benchmarks.record import RESULTS
from benchmarks.rows import LABELS, OTHERS, SCENES, job_of, read_rows
from dopsd_app.checks.judge.world import draw

METHODS = (
    "base",
    "parent",
    "teacher",
    "sft",
    "sft_on_parent",
    "dreambooth",
    "pso",
    "dopsd_ema",
    "dopsd_fast",
)
ROWS = {"real": "the world's own", "worn": "training pictures", **{name: LABELS[name] for name in METHODS}}
GAP, LABEL = 12, 170
INK, PAPER = (40, 40, 46), (255, 255, 255)


def kept_pictures() -> dict[tuple[str, int], np.ndarray]:
    """By method and concept: pictures (N, 64, 64, 3), SCENES of its prompts and OTHERS of neutral ones."""
    jobs = [job_of(row) for row in read_rows() if row["job"]["part"] == "test"]
    kept = [job for job in jobs if job.seed == 0 and job.concept < SHOWN]
    rows = {(job.method, job.concept): np.asarray(Image.open(job.pictures)) for job in kept}
    return {key: np.stack(np.hsplit(row, SCENES + OTHERS)) for key, row in rows.items()}


def concept_rows(kept: dict[tuple[str, int], np.ndarray], number: int) -> dict[str, list[np.ndarray]]:
    """A concept's pictures by row; only the concept itself has real ones."""
    _, asked = captions_of("test", number)
    concept, scenes = concepts_of("test")[number], [scene for scene, _ in asked]
    rows = {
        "real": [draw(concept, scene) for scene in scenes[:SCENES]],
        "worn": [np.asarray(picture) for picture in training_pictures("test", number, worn=True)],
    }
    for method in METHODS:
        if (method, number) in kept:
            # Of what is neutral there is no picture that the teacher could see.
            rows[method] = list(kept[method, number])[: SCENES if method == "teacher" else None]
    return rows


def make_picture() -> Image.Image:
    """Concepts one above the other, a labelled row for each method."""
    kept, font = kept_pictures(), ImageFont.load_default(14)
    blocks = [concept_rows(kept, number) for number in range(SHOWN)]
    width = LABEL + (SCENES + OTHERS) * SIDE + GAP
    height = sum(len(rows) for rows in blocks) * SIDE + (len(blocks) - 1) * GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    pen, top = ImageDraw.Draw(sheet), 0
    for rows in blocks:
        for name, pictures in rows.items():
            pen.text((0, top + SIDE // 2), ROWS[name], INK, font, anchor="lm")
            for column, picture in enumerate(pictures):
                left = LABEL + column * SIDE + GAP * (column >= SCENES)
                sheet.paste(Image.fromarray(picture), (left, top))
            top += SIDE
        top += GAP
    return sheet


if __name__ == "__main__":
    make_picture().save(RESULTS / "method.webp", quality=90)
