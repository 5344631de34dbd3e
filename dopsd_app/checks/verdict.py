"""What a teacher check found, in figures and in a sentence."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from dopsd_app.files import find_renamed, read_value, replace_file

CHECK_FILE = "teacher_check.json"  # in the folder of a check
CHECKED = 4  # pictures in a check
# Scores from which on the verdict is that. On the built-in base they part teachers that show at least one of
# a creature's six attributes because they see it, and at least three: fitted to 24 creatures in
# benchmarks/results/teacher_check.json, which tells of 24 others where the verdicts are wrong.
PARTLY, SEES = 0.22, 0.65
CALIBRATED = "pocket-turbo"

SENTENCES = {
    "sees": "The teacher sees it: with your picture in view it draws much of what makes your subject."
    " Training can teach what its pictures here show, and no more. If that is enough, go on and train.",
    "partly": "The teacher sees it only partly. You can train, but expect colours rather than details;"
    " clearer pictures may help.",
    "does not": "The teacher does not see it: your pictures change little of what it draws, so it has nothing"
    " to teach. Do not train yet. Try pictures that show the subject larger and more clearly, and captions"
    " that leave out what it looks like.",
}
# Of an edit: how to go on where the teacher does not see it.
EDIT_SENTENCES = {
    "sees": "The teacher sees it: with your result in view it draws much of what the source is to become."
    " Training can teach what its pictures here show, and no more. If that is enough, go on and train.",
    "partly": "The teacher sees it only partly. You can train, but expect less of a change than in your"
    " results.",
    "does not": "The teacher does not see it: your results change little of what it draws from source and"
    " instruction, so it has nothing to teach. Do not train yet. Try instructions that say what changes, and"
    " results that show it clearly. If it draws the edit well without them, it needs no training.",
}
GUIDE = " On this base model the score is a guide only: trust your eyes."


@dataclass(frozen=True)
class CheckRow:
    """One picture of a check: how like it the drawn pictures are, as cosines of features."""

    student: float  # drawn from the caption alone
    teacher: float  # drawn from caption and picture
    control: float  # drawn by the teacher from the caption and a grey picture


@dataclass(frozen=True)
class TeacherCheck:
    """A whole check, as CHECK_FILE holds it."""

    rows: tuple[CheckRow, ...]
    score: float  # 0: the teacher sees nothing of the pictures; 1: it draws them again
    gain: float  # of the teacher over the student, a mean over the rows
    control_gain: float  # the same when it is shown a grey picture instead
    verdict: str  # "sees", "partly" or "does not"
    sentence: str  # what that means, and what to do
    calibrated: bool  # whether the score was compared with the truth on this base model


def judge_rows(rows: tuple[CheckRow, ...], base_model: str, *, edits: bool = False) -> TeacherCheck:
    """The verdict on a check's rows; `edits` tells that they start from source pictures."""
    score = max(0.0, score_rows(rows))
    verdict = "sees" if score >= SEES else "partly" if score >= PARTLY else "does not"
    calibrated = base_model == CALIBRATED
    return TeacherCheck(
        rows,
        score,
        gain=sum(row.teacher - row.student for row in rows) / len(rows),
        control_gain=sum(row.control - row.student for row in rows) / len(rows),
        verdict=verdict,
        sentence=(EDIT_SENTENCES if edits else SENTENCES)[verdict] + ("" if calibrated else GUIDE),
        calibrated=calibrated,
    )


def score_rows(rows: tuple[CheckRow, ...]) -> float:
    """How much of the way to the pictures the teacher goes that neither the student nor the control goes.

    The control counts only where it comes nearer than the student: one that leads astray must not flatter
    the teacher.
    """
    start = sum(max(row.student, row.control) for row in rows) / len(rows)
    end = sum(row.teacher for row in rows) / len(rows)
    return (end - start) / max(1 - start, 1e-6)


def save_check(check: TeacherCheck, folder: Path) -> None:
    """Writes CHECK_FILE, the last file of a check to appear."""
    replace_file(folder / CHECK_FILE, json.dumps(asdict(check), indent=2))


def read_check(folder: Path) -> TeacherCheck | None:
    """What `save_check` wrote into the folder; None while there is nothing, or nothing that can be read."""
    try:
        return read_value(TeacherCheck, find_renamed(folder / CHECK_FILE, "check.json").read_bytes())
    except (OSError, ValueError):
        return None


def rows_drawn(folder: Path) -> list[tuple[Path, ...]]:
    """The rows that are whole so far: the picture, what the student draws, what the teacher draws.

    Of an edit, the picture that it starts from stands before them.
    """
    rows = []
    while (row := _row(folder, len(rows)))[-1].exists():
        rows.append(row)
    return rows


def _row(folder: Path, index: int) -> tuple[Path, ...]:
    source, *row = (folder / f"{index}_{who}.webp" for who in ("source", "crop", "student", "teacher"))
    return (source, *row) if source.exists() else tuple(row)
