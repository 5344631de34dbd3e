"""The five steps together: what a page finds when it is opened."""

from dataclasses import dataclass

import gradio as gr
from gradio.blocks import Block

from dopsd_app.data.drafts import Draft
from dopsd_app.errors import KnownFailure
from dopsd_app.hub.access import AccessError, check_access, this_space
from dopsd_app.jobs.runs import default_runs_dir, list_runs
from dopsd_app.ui import run_actions
from dopsd_app.ui.enlarge import ENLARGE
from dopsd_app.ui.events import IN_BROWSER, source_of
from dopsd_app.ui.navigation import (
    PICTURES,
    PLAN,
    REMEMBER_RUN,
    REMEMBERED,
    TEACHER,
    TRAIN,
    TRY,
    Navigation,
    navigation,
)
from dopsd_app.ui.pictures import PicturesStep, pictures_step
from dopsd_app.ui.plan import PlanStep, plan_step
from dopsd_app.ui.publish import PublishStep, publish_step
from dopsd_app.ui.server.guard import guarded
from dopsd_app.ui.shown_draft import draft_of, the_draft
from dopsd_app.ui.teacher import TeacherStep, teacher_step
from dopsd_app.ui.train import TrainStep, train_step
from dopsd_app.ui.try_it import TryStep, try_step
from dopsd_app.ui.visitors import Bar, bar, describe_machine, limits, welcome

# On narrow screens Gradio takes the names off the steps' buttons: they stay for those who listen. And its
# lists open again at the key that leaves them, over whatever stands near: they do not get to see that key.
ACCESSIBILITY = """() => {
    const names = {
        pictures: "Pictures", teacher: "Teacher", plan: "Plan", train: "Train", try: "Try and publish"
    };
    for (const [id, name] of Object.entries(names))
        document.getElementById(`step-${id}-button`)?.setAttribute("aria-label", name);
    const hide = (event) => {
        if (event.key === "Tab" && event.target.matches("input[role=combobox]")) event.stopPropagation();
    };
    window.addEventListener("keydown", hide, true);
}"""


@dataclass(frozen=True)
class Page:
    """All steps, and what lies around them."""

    visitor: gr.HTML
    bar: Bar
    limits: gr.HTML
    work: gr.Column
    navigation: Navigation
    pictures: PicturesStep
    teacher: TeacherStep
    plan: PlanStep
    train: TrainStep
    trying: TryStep
    publishing: PublishStep

    @property
    def outputs(self) -> list[Block]:
        """What `enter` fills."""
        around = [
            self.visitor,
            self.bar.machine,
            self.bar.to_runs,
            self.limits,
            self.work,
            *self.navigation.outputs,
        ]
        return [*around, *self.pictures.outputs, *self._steps]

    @property
    def _steps(self) -> list[Block]:
        steps = (self.teacher, self.plan, self.train, self.trying, self.publishing)
        return [component for step in steps for component in step.outputs]

    def connect(self, app: gr.Blocks, steps: dict[int, gr.Step]) -> None:
        """Connects all events."""
        places = [self.navigation.place, self.train.run_id]
        app.load(
            guarded(self.enter, everybody=True),
            places,
            self.outputs,
            api_visibility="private",
            show_progress="hidden",
            show_progress_on=[],
            js=REMEMBERED,
        )
        app.load(None, js=ACCESSIBILITY, **IN_BROWSER)
        app.load(None, js=ENLARGE, **IN_BROWSER)
        self.train.run_id.change(None, self.train.run_id, None, js=REMEMBER_RUN, **IN_BROWSER)
        at = [self.pictures.draft, self.train.run_id]
        self.navigation.connect(app, steps, self.reopen, at, self._steps)
        for step in (self.pictures, self.teacher, self.plan, self.train, self.trying, self.publishing):
            step.connect(self)

    def enter(
        self, step: int | None, run_id: str | None, request: gr.Request, oauth_token: str | None
    ) -> dict:
        """Fills a page that was just opened: for the owner with their work, for others with the product."""
        space = this_space()
        try:
            check_access(oauth_token)
        except AccessError as error:
            assert space is not None  # elsewhere nobody is refused
            refusal = str(error) if oauth_token else ""
            return {
                self.visitor: gr.HTML(welcome(space, refusal), visible=True),
                self.work: gr.Column(visible=False),
            }
        draft = the_draft("")
        run_id, place = _place(request.query_params.get("run"), run_id, step, bool(draft.items))
        try:
            contents = self._contents(draft, run_id, place)
        except (KnownFailure, FileNotFoundError):  # a run of another version, or one that is just going
            run_id, place = "", PICTURES
            contents = self._contents(draft, run_id, place)
        return {
            self.visitor: gr.HTML(visible=False),
            self.limits: limits(space) if space else "",
            self.work: gr.Column(visible=True),
            self.bar.machine: describe_machine(),
            self.bar.to_runs: gr.Button(visible=True),
            **self.navigation.go_to(place),
            **self.pictures.show(draft, as_built=True),
            **contents,
        }

    def reopen(self, shown: object, run_id: str, event: gr.EventData) -> dict:
        """Opens the step that the browser goes back (or forth) to."""
        place = int(source_of(event).removeprefix("reopen-"))
        try:
            return {**self.navigation.go_to(place), **self._contents(draft_of(shown), run_id or "", place)}
        except KnownFailure:  # deleted meanwhile, or not there yet
            return {**self.navigation.go_to(PICTURES), **self.teacher.show(draft_of(shown))}

    def _contents(self, draft: Draft, run_id: str, place: int) -> dict:
        """What the other steps show that can be reached from the one that is open."""
        return {
            **self.teacher.show(draft),
            **self.train.show(run_id),
            **(self.plan.show(draft) if place >= PLAN else {}),
            **({**self.trying.show(run_id), **self.publishing.show(run_id)} if place == TRY else {}),
        }


def add_page(app: gr.Blocks) -> Page:
    """Lays all steps out and connects them."""
    top = bar("D-OPSD LoRA trainer")
    visitor = gr.HTML(visible=False, elem_id="visitor")
    with gr.Column(visible=this_space() is None, elem_id="work") as work:
        limits_of_space = gr.HTML(elem_id="limits")
        with gr.Walkthrough(elem_id="walk") as walk:
            with gr.Step("Pictures", id=PICTURES, elem_id="step-pictures") as one:
                pictures = pictures_step()
            with gr.Step("Teacher", id=TEACHER, elem_id="step-teacher") as two:
                teacher = teacher_step()
            with gr.Step("Plan", id=PLAN, elem_id="step-plan") as three:
                plan = plan_step()
            with gr.Step("Train", id=TRAIN, elem_id="step-train") as four:
                train = train_step(top.to_runs)
            with gr.Step("Try and publish", id=TRY, elem_id="step-try") as five:
                trying, publishing = try_step(), publish_step()
        steps = {PICTURES: one, TEACHER: two, PLAN: three, TRAIN: four, TRY: five}
        way = navigation(walk)
    page = Page(visitor, top, limits_of_space, work, way, pictures, teacher, plan, train, trying, publishing)
    page.connect(app, steps)
    return page


def _place(asked: str | None, known: str | None, step: int | None, has_pictures: bool) -> tuple[str, int]:
    """The run to show and the step to open: the address's, what this browser had open, or what is at work."""
    runs = {run.id: run for run in list_runs(default_runs_dir())}
    if asked in runs:
        return asked, TRAIN
    if known in runs and step in (TRAIN, TRY):
        return known, step if run_actions.can_try(runs[known]) else TRAIN
    live = [run.id for run in runs.values() if run.status.busy]
    if live and step not in (PICTURES, TEACHER, PLAN):
        return live[0], TRAIN
    shown = known if known in runs else next(iter(live or runs), "")
    return shown, step if step in (TEACHER, PLAN) and has_pictures else PICTURES
