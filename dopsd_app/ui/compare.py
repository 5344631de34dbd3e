"""A grid of drawn pictures as the page shows it: prompts beside base, checkpoints and strengths."""

from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime

from dopsd_app.errors import KnownFailure
from dopsd_app.jobs.drawing import Column, Drawing, PictureRequest, Row, is_of_today
from dopsd_app.jobs.runs import Run
from dopsd_app.jobs.status import Status
from dopsd_app.models.catalog import find_facts, is_known
from dopsd_app.planning.machine import read_machine
from dopsd_app.planning.pace import seconds_per_picture
from dopsd_app.ui import words
from dopsd_app.ui.server.picture_files import whole
from dopsd_app.ui.sheet import save_sheet
from dopsd_app.ui.try_sources import find_sources
from dopsd_app.ui.use_file import FINISHED, file_name

# Buttons in the grid and in the history say what they stand for; links and everything else go their own way.
CHOOSE = """element.addEventListener('click', (event) => {
    const button = event.target.closest('button[data-value]');
    if (button) trigger('click', {value: button.dataset.value});
});"""
SHEET = "sheet.png"  # in a drawing's folder: all its pictures as one


def column_name(column: Column) -> str:
    """What stands above a column."""
    if not column.strength:
        return "Base"
    step = FINISHED if column.checkpoint is None else f"Step {column.checkpoint}"
    return step if column.strength == 1 else f"{step} at {column.strength:g}"


def row_name(asked: PictureRequest, row: Row) -> str:
    """What stands at a row: its prompt and, where there are several, its seed."""
    return f"{row.prompt} · seed {row.seed}" if len(asked.seeds) > 1 else row.prompt


def grid(run: Run, drawing: Drawing, busy: bool) -> str:
    """All pictures of a drawing, row by row, with empty places for those that are still to come."""
    asked = drawing.asked_for(PictureRequest)
    rows = "".join(_row(run, drawing, asked, number, busy) for number in range(len(asked.rows)))
    return f"<div class='compared' style='--columns:{len(asked.columns)}'>{rows}</div>"


def _row(run: Run, drawing: Drawing, asked: PictureRequest, number: int, busy: bool) -> str:
    name = words.text(row_name(asked, asked.rows[number]))
    cells = "".join(_cell(run, drawing, asked, number, place, busy) for place in range(len(asked.columns)))
    return f"<section><h3>{name}</h3><div class='cells'>{cells}</div></section>"


def _cell(run: Run, drawing: Drawing, asked: PictureRequest, row: int, column: int, busy: bool) -> str:
    name, seed = column_name(asked.columns[column]), asked.rows[row].seed
    prompt, file = asked.rows[row].prompt, drawing.cell(row, column)
    caption = f"{prompt} · {name} · seed {seed}"
    picture = words.picture(file, caption, group=f"{drawing.id}-{row}", caption=caption)
    if not picture:
        waiting = "<div class='coming'></div>" if busy else "<div class='coming never'>Not drawn</div>"
        return f"<figure><figcaption><b>{name}</b></figcaption>{waiting}</figure>"
    called = words.text(picture_name(run, asked, row, column))
    tools = f"<a href='{words.text(whole(file))}' download='{called}' aria-label='Save {called}'>Save</a>"
    if asked.columns[column].strength:
        tools += f"<button data-value='{row}-{column}'>To the card</button>"
    return f"<figure><figcaption><b>{name}</b></figcaption>{picture}<div class='tools'>{tools}</div></figure>"


def history(drawings: list[Drawing], shown: str) -> str:
    """What was drawn for a run, to be shown again; nothing while there is but what is shown."""
    if not [drawing for drawing in drawings if drawing.id != shown]:
        return ""
    items = "".join(_earlier(drawing, drawing.id == shown) for drawing in drawings)
    group = "class='drawn-before' tabindex='0' role='group' aria-label='Drawn before'"
    return f"<h3>Drawn before</h3><div {group}>{items}</div>"


def _earlier(drawing: Drawing, shown: bool) -> str:
    asked = drawing.asked_for(PictureRequest)
    # The last picture that is there: most likely of a LoRA.
    picture = words.image(max(drawing.pictures, key=lambda file: file.stat().st_mtime_ns), "", 256)
    when = datetime.fromtimestamp(drawing.job_file.stat().st_mtime).astimezone()
    about = f"{words.count(len(drawing.pictures), 'picture')} · {when:%d %b %H:%M}"
    if not is_of_today(Run(drawing.runs_dir / asked.run_id), drawing):
        about += " · of an earlier training"
    pressed = " aria-pressed='true'" if shown else ""
    return (
        f"<button data-value='{drawing.id}'{pressed}>{picture}<span>{words.text(asked.prompts[0])}</span>"
        f"<small>{about}</small></button>"
    )


def reminder(word: str) -> str:
    """The trigger word, where there is one."""
    return f"<p class='hint'>The trigger word is <b>{words.text(word)}</b>.</p>" if word else ""


def estimate(run: Run, asked: PictureRequest, source: str) -> str:
    """How many pictures it is, and how long they take where that is known."""
    number = words.count(asked.cells, "picture")
    if not is_known(run.config.base_model, run.config.revision):
        return f"<p class='hint'>{number}</p>"  # it is not here any more
    config = run.config
    with suppress(KnownFailure):  # a source that is gone is told where it is shown
        sources = len(find_sources(run, source))
        sizes = find_facts(config.base_model, config.revision).sizes.with_sources(sources)
        machine = read_machine().only(config.card)
        on_gpu = config.device != "cpu" and machine.card(config.precision) is not None
        if seconds := seconds_per_picture(config, sizes, run.runs_dir, machine, on_gpu):
            time = words.in_time(seconds * asked.cells).removeprefix("about ")
            number += f", about {time}"
    return f"<p class='hint'>{number}</p>"


def progress(status: Status | None, waits: str) -> str:
    """How a drawing stands, while it is not finished; `waits` says what it waits for, where it does."""
    if status is None or status.state == "finished":
        return ""
    if not status.busy:
        said = status.reason or "Cancelled. What was drawn is kept."
        return f"<p class='hint' role='status'>{words.message(said)}</p>"
    if status.download:
        share = status.done / status.total if status.total else 0.0
        doing = f"{words.STATES['downloading']}. {words.download(status.download)}"
    else:
        drawing = status.state in ("drawing", "stopping")
        share = status.done / status.total if drawing and status.total else 0.0
        doing = {
            "queued": waits,
            "loading": "Loading the model",
            "stopping": "Stopping after this picture",
        }.get(status.state, f"{status.done} of {words.count(status.total, 'picture')} drawn")
    return (
        f"<p class='hint' role='status'>{words.message(doing)}</p>"
        f"<progress max='1' value='{share:.3f}' aria-label='Pictures drawn'></progress>"
    )


# --- files to keep


def picture_name(run: Run, asked: PictureRequest, row: int, column: int) -> str:
    """What one picture's file is called."""
    prompt = f"_prompt-{1 + row // len(asked.seeds)}" if len(asked.prompts) > 1 else ""
    return f"{file_name(run)}{prompt}_{_drawn_by([asked.columns[column]])}_seed-{asked.rows[row].seed}.png"


def sheet_name(run: Run, asked: PictureRequest) -> str:
    """What all of them as one picture are called."""
    seeds = f"seed-{asked.seeds[0]}" if len(asked.seeds) == 1 else f"seeds-{asked.seeds[0]}-{asked.seeds[-1]}"
    return (
        f"{file_name(run)}_{_drawn_by([column for column in asked.columns if column.strength])}_{seeds}.png"
    )


def _drawn_by(columns: list[Column]) -> str:
    """What draws the columns, in a file's name: step-75, or step-25-75-final_strength-0.6-1."""
    if not any(column.strength for column in columns):
        return "base"
    steps = sorted({column.checkpoint for column in columns if column.checkpoint is not None})
    named = [f"step-{_in_short(map(str, steps))}"] if steps else []
    named += ["final"] if any(column.checkpoint is None for column in columns) else []
    strengths = _in_short(f"{strength:g}" for strength in sorted({column.strength for column in columns}))
    return "-".join(named) + ("" if strengths == "1" else f"_strength-{strengths}")


def _in_short(numbers: Iterable[str]) -> str:
    """All of a few, and of many the first and the last: a file's name has little room."""
    first, *others = numbers
    return "-".join([first, *others]) if len(others) < 5 else f"{first}-to-{others[-1]}"


def sheet_link(run: Run, drawing: Drawing) -> str:
    """A link that saves all pictures of a drawing as one, which is made when the drawing rests."""
    asked, file = drawing.asked_for(PictureRequest), drawing.path / SHEET
    if not drawing.pictures:
        return ""
    if not file.exists():
        save_sheet(
            file,
            [column_name(column) for column in asked.columns],
            [
                (row_name(asked, row), [drawing.cell(number, place) for place in range(len(asked.columns))])
                for number, row in enumerate(asked.rows)
            ],
        )
    name = words.text(sheet_name(run, asked))
    return f"<a class='save-sheet' href='{words.text(whole(file))}' download='{name}'>Save as one picture</a>"
