"""The list of runs beside the fourth step, and what is asked of its runs: one, or several at once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr
from gradio.blocks import Block

from dopsd_app.data.drafts import default_drafts_dir
from dopsd_app.data.uploads import clone_run
from dopsd_app.errors import KnownFailure
from dopsd_app.jobs.run_notes import MAX_NAME, MAX_NOTES, name_of, read_notes
from dopsd_app.jobs.runs import Run
from dopsd_app.jobs.status import Status
from dopsd_app.ui import run_actions, words
from dopsd_app.ui.confirmation import Confirmation, confirmation
from dopsd_app.ui.events import IN_BROWSER, held, listen
from dopsd_app.ui.kept_text import KeptText, kept_text
from dopsd_app.ui.navigation import PICTURES, PLAN
from dopsd_app.ui.run_actions import statuses, the_run
from dopsd_app.ui.run_compare import compare
from dopsd_app.ui.run_rows import listed, live_words, rows
from dopsd_app.ui.shown_draft import draft_of

if TYPE_CHECKING:
    from dopsd_app.ui.page import Page
    from dopsd_app.ui.train import TrainStep

SCRIPT = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
# What the script fills: where one searches, what stands in place of what was not found, and the rows.
TEMPLATE = (
    "<input type='search' aria-label='Find a run' placeholder='Name, trigger word or notes' hidden>"
    "<p role='status' class='hint' hidden>No run has these words.</p><ul aria-label='Runs'></ul>"
)
# On narrow screens the list stands below all that is told of a run.
SHOW_LIST = "() => innerWidth < 700 && document.getElementById('runs').scrollIntoView({ block: 'center' })"
# What is ticked at the moment of a click: what the server was last told may be on its way still.
TICKED = """() => [
    [...document.querySelectorAll("#runs .tick input:checked")].map((box) => box.closest("li").dataset.run)
]"""
SHOW_COMPARISON = "() => document.getElementById('comparison')?.scrollIntoView({ block: 'start' })"
BETWEEN = "/"  # ids of several runs in one text: no folder's name holds it


@dataclass(eq=False)
class RunList:
    """The components of the list, and what its events do."""

    step: "TrainStep" = field(init=False)
    cards: gr.HTML  # one for each run
    ticked: gr.JSON  # ids, of the moment of a click
    delete_ticked: gr.Button
    compare: gr.Button
    clone: gr.Button
    take: gr.Button
    delete: gr.Button
    deletion: Confirmation  # of the runs whose ids its subject holds
    about: gr.Column
    name: KeptText
    notes: KeptText
    comparison: gr.Column
    compared: gr.HTML
    close: gr.Button

    @property
    def watched(self) -> list[Block]:
        """What `values` tells of."""
        return [self.cards, self.clone, self.take, self.delete]

    @property
    def outputs(self) -> list[Block]:
        """What `show` fills."""
        return [self.about, *self.name.outputs, *self.notes.outputs, *self._closed]

    @property
    def _closed(self) -> list[Block]:
        return [self.deletion.row, self.deletion.subject, self.comparison]

    def connect(self, step: "TrainStep", page: "Page") -> None:
        """Connects the list's events."""
        self.step = step
        # Else what is pressed while an answer is on its way would be lost.
        of_ticked = [self.delete_ticked, self.compare]
        listen(self.cards.select, self.choose, None, step.outputs, trigger_mode="multiple")
        listen(self.cards.input, self.tick, None, of_ticked, trigger_mode="multiple")
        listen(self.delete.click, self.ask_to_delete, step.run_id, self.deletion.outputs)
        asked = self.deletion.outputs
        listen(self.delete_ticked.click, self.ask_to_delete_all, self.ticked, asked, js=TICKED)
        self.deletion.connect(self.delete_runs, [step.run_id], step.outputs)
        shown = [self.comparison, self.compared]
        comparing = listen(self.compare.click, self.show_comparison, self.ticked, shown, js=TICKED)
        comparing.then(None, js=SHOW_COMPARISON, **IN_BROWSER)
        listen(self.close.click, self.close_comparison, None, self.comparison)
        self.name.connect(step.run_id, self.rename, [self.cards])
        self.notes.connect(step.run_id, self.write_notes, [self.cards])
        filled = [*page.navigation.outputs, *page.plan.outputs, *page.pictures.outputs]
        listen(self.clone.click, self.use_again, step.run_id, filled, progress_on=page.plan.needs)
        listen(
            self.take.click,
            self.take_settings,
            [page.pictures.draft, step.run_id],
            filled,
            progress_on=page.plan.needs,
        )

    # --- what it shows

    def values(self, known: Sequence[tuple[Run, Status]], run: Run | None, status: Status | None) -> dict:
        """What tells of a change, and makers, for `only_changed`."""
        active = {
            self.clone: status is not None,
            self.take: status is not None,
            self.delete: status is not None and not status.live,
        }
        buttons = {button: (on, lambda on=on: gr.Button(visible=on)) for button, on in active.items()}
        listed_runs = {"value": rows(known), "live": live_words(known), "shown": run.id if run else ""}
        return {self.cards: listed_runs, **buttons}

    def show(self, run: Run | None) -> dict:
        """What belongs to another run than before; nothing that was open for that one stays."""
        return {
            self.about: gr.Column(visible=run is not None),
            **self.name.fill(name_of(run) if run else ""),
            **self.notes.fill(read_notes(run) if run else ""),
            **self.deletion.close(),
            self.comparison: gr.Column(visible=False),
        }

    # --- what its events do

    def choose(self, event: gr.EventData) -> dict:
        """Shows the run whose row was pressed."""
        return self.step.show(the_run(str(_told(event).get("run"))).id)

    def tick(self, event: gr.EventData) -> dict:
        """Offers what can be done with the runs that are ticked now."""
        ids = _ids(_told(event).get("ticked"))
        return {
            self.delete_ticked: gr.Button(f"Delete selected ({len(ids)})", visible=bool(ids)),
            self.compare: gr.Button(visible=len(ids) == 2),
        }

    def ask_to_delete(self, run_id: str) -> dict:
        """Asks whether the run is to be deleted."""
        return self.deletion.ask(run_id, f"Delete {name_of(the_run(run_id))} for good")

    def ask_to_delete_all(self, ticked: object) -> dict:
        """Asks whether the ticked runs are to be deleted, by their names."""
        ids = _ids(ticked)
        names = [name_of(the_run(run_id)) for run_id in ids]
        if not names:
            raise KnownFailure("Tick the runs that are to be deleted.")
        return self.deletion.ask(BETWEEN.join(ids), f"Delete {listed(names)} for good")

    def delete_runs(self, subject: str, run_id: str) -> dict:
        """Deletes the runs that were asked about, with their pictures, for good."""
        ids = subject.split(BETWEEN)
        words.passing(run_actions.remove_runs(ids), duration=8)
        left = [run.id for run, _ in statuses()]
        return self.step.show(run_id if run_id in left else next(iter(left), ""))

    def show_comparison(self, ticked: object) -> dict:
        """Shows two runs side by side."""
        ids = _ids(ticked)
        if len(ids) != 2:
            raise KnownFailure("Tick the two runs that are to be compared.")
        first, second = map(the_run, reversed(ids))  # the older one first
        return {self.compared: compare(first, second), self.comparison: gr.Column(visible=True)}

    def close_comparison(self) -> dict:
        """Leaves the comparison."""
        return {self.comparison: gr.Column(visible=False)}

    def rename(self, run_id: object, name: str) -> dict:
        """Calls the run so."""
        run_actions.rename_run(str(run_id), name)
        return self._show_rows()

    def write_notes(self, run_id: object, notes: str) -> dict:
        """Keeps what is written about the run."""
        run_actions.write_notes(str(run_id), notes)
        return self._show_rows()

    def _show_rows(self) -> dict:
        return {self.cards: gr.update(value=rows(statuses()))}

    def use_again(self, run_id: str) -> dict:
        """A new draft with the run's pictures and settings, at the third step."""
        run, page = the_run(run_id), self.step.page
        draft = clone_run(default_drafts_dir(), run.config, run.dataset)
        return {**page.navigation.go_to(PLAN), **page.pictures.show(draft), **page.plan.show(draft)}

    def take_settings(self, shown: object, run_id: str) -> dict:
        """The run's settings for the pictures of the open draft, at the third step."""
        page = self.step.page
        draft, remarks = run_actions.take_settings(draft_of(shown), run_id)
        words.passing(f"Your pictures have the settings of {name_of(the_run(run_id))} now.")
        for remark in remarks:
            words.passing(remark, title="This does not fit", duration=20)
        place = PLAN if draft.items else PICTURES
        return {**page.navigation.go_to(place), **page.pictures.show(draft), **page.plan.show(draft)}


def comparison_box() -> tuple[gr.Column, gr.HTML, gr.Button]:
    """Lays out the place of a comparison."""
    with gr.Column(visible=False, elem_id="comparison") as column:
        compared = gr.HTML(elem_id="comparison-result", apply_default_css=False)
        close = gr.Button("Close", size="sm", elem_id="close-comparison")
    return column, compared, close


def run_list(comparison: tuple[gr.Column, gr.HTML, gr.Button]) -> RunList:
    """Lays the list out; the comparison, which needs more room, stands elsewhere."""
    gr.HTML("<h2>Runs</h2>")
    cards = gr.HTML(
        [],
        live={},
        shown="",
        html_template=TEMPLATE,
        js_on_load=SCRIPT,
        apply_default_css=False,
        elem_id="runs",
        elem_classes="runs",
    )
    with gr.Row(elem_classes="buttons"):
        compare_button = gr.Button("Compare the two", visible=False, size="sm", elem_id="compare")
        delete_ticked = gr.Button(
            "Delete selected", visible=False, size="sm", variant="stop", elem_id="delete-ticked"
        )
    deletion = confirmation("run", "Delete for good", "Keep")
    with gr.Column(visible=False, elem_id="about-run") as about:
        name = kept_text("Name", elem_id="run-name", max_length=MAX_NAME, info="The LoRA keeps its own")
        notes = kept_text("Notes", elem_id="run-notes", lines=2, max_lines=8, max_length=MAX_NOTES)
    with gr.Row(elem_classes="buttons"):
        clone = gr.Button("Use again", visible=False, size="sm", elem_id="clone")
        take = gr.Button("Use its settings", visible=False, size="sm", elem_id="take-settings")
        delete = gr.Button("Delete", visible=False, size="sm", elem_id="delete")
    return RunList(
        cards=cards,
        ticked=held(),
        delete_ticked=delete_ticked,
        compare=compare_button,
        clone=clone,
        take=take,
        delete=delete,
        deletion=deletion,
        about=about,
        name=name,
        notes=notes,
        comparison=comparison[0],
        compared=comparison[1],
        close=comparison[2],
    )


def _told(event: gr.EventData) -> dict:
    """What the script says with an event: of anybody's, for all that is known here."""
    return event._data if isinstance(event._data, dict) else {}


def _ids(ticked: object) -> list[str]:
    return [run_id for run_id in ticked if isinstance(run_id, str)] if isinstance(ticked, list) else []
