"""The fifth step, its first part: what a LoRA draws, beside the base model and at its other steps."""

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import gradio as gr
from gradio.blocks import Block

from dopsd_app.errors import KnownFailure
from dopsd_app.hub.card_pictures import keep_picture
from dopsd_app.jobs.drawing import (
    MAX_PROMPTS,
    MAX_SEEDS,
    Drawing,
    PictureRequest,
    check_request,
    follow,
    list_drawings,
    read_drawing,
)
from dopsd_app.jobs.run_notes import name_of
from dopsd_app.jobs.runs import Run
from dopsd_app.ui import words
from dopsd_app.ui.compare import CHOOSE, estimate, grid, history, progress, reminder, sheet_link
from dopsd_app.ui.events import held, listen, on_tick
from dopsd_app.ui.picture_requests import (
    at_work,
    cancel_drawing,
    draw,
    find_drawing,
    latest_drawing,
    make_request,
    step_choice,
)
from dopsd_app.ui.run_actions import the_run
from dopsd_app.ui.run_rows import waiting_words
from dopsd_app.ui.server.uploads import removed_afterwards
from dopsd_app.ui.try_sources import (
    NOTHING,
    can_start,
    keep_sources,
    list_sources,
    show_sources,
    source_choice,
)
from dopsd_app.ui.updates import only_changed
from dopsd_app.ui.use_file import FINISHED, UseFile, first_prompt, use_file, what_to_try

if TYPE_CHECKING:
    from dopsd_app.ui.page import Page

BUSY, IDLE = 0.5, 5.0  # seconds between two polls: while something is drawn, and while the run trains
STRENGTHS = ("0.4", "0.6", "0.8", "1", "1.2", "1.5")  # that are offered; others can be typed


@dataclass(eq=False)
class TryStep:
    """The components of this part, and what its events do."""

    page: "Page" = field(init=False)
    title: gr.HTML
    prompts: gr.Textbox  # one per line
    start: gr.Row  # there where the base model edits
    source: gr.Dropdown
    upload: gr.UploadButton
    sources: gr.HTML  # the chosen ones
    steps: gr.Dropdown
    strengths: gr.Dropdown
    seed: gr.Number
    random: gr.Button
    batch: gr.Number
    estimate: gr.HTML
    draw: gr.Button
    cancel: gr.Button
    status: gr.HTML
    grid: gr.HTML
    sheet: gr.HTML
    history: gr.HTML
    shown: gr.Textbox  # id of the drawing in the grid
    digests: gr.JSON
    timer: gr.Timer
    using: UseFile

    @property
    def asked(self) -> list[gr.components.Component]:
        """What is to be drawn."""
        return [self.prompts, self.steps, self.strengths, self.seed, self.batch, self.source]

    @property
    def watched(self) -> list[Block]:
        """What `show_drawing` fills."""
        shown = [self.status, self.grid, self.sheet, self.history, self.draw, self.cancel]
        return [self.shown, self.digests, *shown, self.steps, self.using.checkpoint, self.timer]

    @property
    def outputs(self) -> list[Block]:
        """What `show` fills."""
        return [*self._drawing, *(part for part in self.using.outputs if part not in self._drawing)]

    @property
    def _drawing(self) -> list[Block]:
        asked = [part for part in self.asked if part not in self.watched]
        return [self.title, self.start, self.sources, *asked, self.estimate, *self.watched]

    def connect(self, page: "Page") -> None:
        """Connects the part's events."""
        self.page = page
        run_id, card = page.train.run_id, page.publishing
        at = [run_id, self.shown, self.digests]
        on_tick(self.timer, self.poll, at, self.watched)
        listen(
            self.draw.click,
            self.draw_grid,
            [run_id, *self.asked],
            self.watched,
            progress_on=self.status,
            trigger_mode="once",
        )
        listen(self.cancel.click, self.cancel_drawing, at, self.watched)
        listen(self.random.click, self.draw_seed, None, self.seed)
        changes = [self.prompts, self.steps, self.strengths, self.seed, self.batch]
        listen(
            [part.change for part in changes],
            self.reckon,
            [run_id, *self.asked],
            self.estimate,
            trigger_mode="always_last",
        )
        listen(
            self.source.input,
            self.show_sources,
            [run_id, self.source],
            self.sources,
            trigger_mode="always_last",
        )
        listen(
            self.upload.upload,
            self.add_sources,
            [run_id, self.upload],
            [self.upload, self.source, self.sources],
            progress_on=self.sources,
        )
        listen(self.grid.click, self.use_on_card, [run_id, self.shown], card.of_pictures)
        listen(self.history.click, self.show_earlier, run_id, self._drawing)
        self.using.connect(page)

    # --- what it shows

    def show(self, run_id: str) -> dict:
        """Fills the part for a run, with what was last drawn for it."""
        run = the_run(run_id)
        drawing = latest_drawing(run)
        return {**self._show(run, drawing), **self.using.show(run)}

    def _show(self, run: Run, drawing: Drawing | None) -> dict:
        choices, chosen = what_to_try(run)
        asked = (
            drawing.asked_for(PictureRequest)
            if drawing
            else PictureRequest(run.id, (first_prompt(run),), (0,))
        )
        columns = [column for column in asked.columns if column.strength]
        steps = (
            list(dict.fromkeys(step_choice(column) for column in columns))
            if drawing
            else [chosen or FINISHED]
        )
        strengths = list(dict.fromkeys(f"{column.strength:g}" for column in columns))
        sources = list_sources(run, drawing)
        source = sources[0][1] if sources else NOTHING
        return {
            **self.show_drawing(run, drawing),
            self.title: f"<h2>Try {words.text(name_of(run))}</h2>{reminder(run.config.trigger_word)}",
            self.prompts: "\n".join(" ".join(prompt.splitlines()) for prompt in asked.prompts),
            self.start: gr.Row(visible=can_start(run)),
            self.source: gr.Dropdown(choices=sources, value=source),
            self.sources: show_sources(run, source),
            self.steps: gr.update(choices=choices, value=steps),
            self.strengths: strengths or ["1"],
            self.seed: asked.seeds[0],
            self.batch: len(asked.seeds),
            self.estimate: estimate(run, asked, source),
        }

    def show_drawing(self, run: Run, drawing: Drawing | None, sent: object = None) -> dict:
        """A drawing of the run, what else was drawn, and what there is to try.

        What this tab has already is left as it is.
        """
        trains = run.status.busy  # before what it has made is read
        status = drawing.status if drawing else None
        busy = bool(status and status.busy)
        drawn = len(drawing.pictures) if drawing else 0
        working = busy or at_work(run) is not None
        drawings = list_drawings(run)
        choices, _ = what_to_try(run)
        id = drawing.id if drawing else ""
        waits = waiting_words(drawing) if drawing and status and status.state == "queued" else ""
        values = {
            self.shown: (id, lambda: id),
            self.status: (
                status and (status.state, status.done, status.reason, status.download, waits),
                lambda: progress(status, waits),
            ),
            self.grid: ((id, drawn, busy), lambda: grid(run, drawing, busy) if drawing else ""),
            self.sheet: ((id, busy), lambda: sheet_link(run, drawing) if drawing and not busy else ""),
            self.history: ((id, [earlier.id for earlier in drawings]), lambda: history(drawings, id)),
            self.draw: (working, lambda: gr.Button(visible=not working)),
            self.cancel: (working, lambda: gr.Button(visible=working)),
            self.steps: {"choices": choices},
            self.using.checkpoint: {"choices": choices},
            self.timer: (
                (working, trains),
                lambda: gr.Timer(BUSY if working else IDLE, active=working or trains),
            ),
        }
        return only_changed(values, self.digests, sent)

    def poll(self, run_id: str, shown: str, sent: object) -> dict:
        """All that has changed since this tab was sent it."""
        run = the_run(run_id)
        if waiting := at_work(run):
            follow(waiting)
        return self.show_drawing(run, find_drawing(run, shown), sent)

    # --- what its events do

    def draw_grid(
        self,
        run_id: str,
        prompts: str,
        steps: list[str] | None,
        strengths: list[str] | None,
        seed: int,
        batch: int,
        source: str | None,
    ) -> dict:
        """Asks for every prompt with every seed, from the same noise by the base and by each LoRA."""
        run = the_run(run_id)
        request = make_request(run, prompts, steps, strengths, seed, batch)
        return self.show_drawing(run, draw(run, request, source or NOTHING))

    def reckon(
        self,
        run_id: str,
        prompts: str,
        steps: list[str] | None,
        strengths: list[str] | None,
        seed: int,
        batch: int,
        source: str | None,
    ) -> dict:
        """How many pictures it would be, and how long they take."""
        run = the_run(run_id)
        try:
            request = make_request(run, prompts, steps, strengths, seed, batch)
            check_request(run, request)
        except KnownFailure as error:
            return {self.estimate: words.lines([str(error)], "hint")}
        return {self.estimate: estimate(run, request, source or NOTHING)}

    def draw_seed(self) -> dict:
        """Another seed than one would think of."""
        return {self.seed: secrets.randbelow(2**32)}

    def show_sources(self, run_id: str, source: str | None) -> dict:
        """The pictures of another choice."""
        return {self.sources: show_sources(the_run(run_id), source or NOTHING)}

    def add_sources(self, run_id: str, files: list[str] | None) -> dict:
        """Takes uploaded pictures to start from; the server's copies of the uploads are removed."""
        run = the_run(run_id)
        with removed_afterwards(files or []):
            source = keep_sources(run, files or [])
        return {
            self.upload: gr.UploadButton(value=None),
            self.source: gr.Dropdown(
                choices=list_sources(run, next(iter(list_drawings(run)), None)), value=source
            ),
            self.sources: show_sources(run, source),
        }

    def cancel_drawing(self, run_id: str, shown: str, sent: object) -> dict:
        """Stops all drawing for the run; the pictures that are there stay."""
        cancel_drawing(run_id)
        return self.poll(run_id, shown, sent)

    def show_earlier(self, run_id: str, event: gr.EventData) -> dict:
        """Shows what was drawn before, with its settings, to look at or to draw it otherwise."""
        run = the_run(run_id)
        drawing = read_drawing(run.runs_dir, _value_of(event))
        if drawing.asked_for(PictureRequest).run_id != run.id:
            raise KnownFailure("This was drawn for another run.")
        return self._show(run, drawing)

    def use_on_card(self, run_id: str, shown: str, event: gr.EventData) -> dict:
        """Puts a picture of the grid on the model card."""
        row, _, column = _value_of(event).partition("-")
        if not (row.isdecimal() and column.isdecimal()):
            raise KnownFailure("Draw a picture first.")
        run = the_run(run_id)
        keep_picture(run, shown, int(row), int(column))
        words.passing("It is on the card.")
        return self.page.publishing.show_pictures(run)


def try_step() -> TryStep:
    """Lays the part out."""
    title = gr.HTML("<h2>Try it</h2>", elem_id="try-title")
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=300):
            prompts = gr.Textbox(
                label="Prompts",
                info=f"One per line, up to {MAX_PROMPTS}",
                lines=4,
                max_lines=MAX_PROMPTS,
                elem_id="prompt",
                max_length=16_000,
            )
            with gr.Row(visible=False, equal_height=False) as start:
                source, upload, sources = source_choice()
        with gr.Column(scale=2, min_width=300):
            # They may be shown with the choices of the run before: no error then.
            steps = gr.Dropdown(
                [FINISHED],
                value=[],
                multiselect=True,
                allow_custom_value=True,
                label="Compare with the base",
                elem_id="steps",
            )
            strengths = gr.Dropdown(
                STRENGTHS,
                value=["1"],
                multiselect=True,
                allow_custom_value=True,
                label="At a strength of",
                info="1 is what was trained",
                elem_id="strength",
            )
            with gr.Row(equal_height=False, elem_classes="seeds"):
                seed = gr.Number(
                    0, label="Seed", precision=0, minimum=0, maximum=2**32 - 1, elem_id="seed", min_width=110
                )
                random = gr.Button("Random seed", size="sm", min_width=100, elem_id="random-seed")
                batch = gr.Number(
                    1,
                    label="Seeds each",
                    precision=0,
                    minimum=1,
                    maximum=MAX_SEEDS,
                    elem_id="batch",
                    min_width=110,
                )
    with gr.Row(elem_classes="buttons draw"):
        draw_button = gr.Button("Draw", variant="primary", elem_id="draw")
        cancel_button = gr.Button("Cancel", visible=False, elem_id="cancel-draw")
        reckoned = gr.HTML(elem_id="estimate")
    status = gr.HTML(elem_id="draw-status")
    return TryStep(
        title=title,
        prompts=prompts,
        start=start,
        source=source,
        upload=upload,
        sources=sources,
        steps=steps,
        strengths=strengths,
        seed=seed,
        random=random,
        batch=batch,
        estimate=reckoned,
        draw=draw_button,
        cancel=cancel_button,
        status=status,
        grid=gr.HTML(elem_id="grid", js_on_load=CHOOSE),
        sheet=gr.HTML(elem_id="sheet"),
        history=gr.HTML(elem_id="history", js_on_load=CHOOSE),
        shown=gr.Textbox(visible=False),
        digests=held(),
        timer=gr.Timer(IDLE, active=False),
        using=use_file(),
    )


def _value_of(event: gr.EventData) -> str:
    """What the pressed button stands for."""
    sent = event._data
    if not isinstance(sent, dict) or not isinstance(value := sent.get("value"), str):
        raise KnownFailure("The server cannot use what was sent. Reload the page and try again.")
    return value
