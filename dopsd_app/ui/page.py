"""The five steps together: what a page finds when it is opened, and how one step leads to the next."""

from collections.abc import Callable
from dataclasses import dataclass

import gradio as gr

from dopsd_app.data.drafts import Draft, set_settings
from dopsd_app.errors import KnownFailure
from dopsd_app.hub.access import AccessError, check_access, this_space
from dopsd_app.jobs.runs import default_runs_dir, list_runs
from dopsd_app.ui import pictures, plan, publish, run_actions, teacher, train, try_it, words
from dopsd_app.ui.server.guard import guarded
from dopsd_app.ui.typing_order import STAMP, moment
from dopsd_app.ui.visitors import describe_machine, header, limits, welcome

NOWHERE, PICTURES, TEACHER, PLAN, TRAIN, TRY = 0, 1, 2, 3, 4, 5
# On narrow screens Gradio takes the names off the steps' buttons: they stay for those who listen. And its
# lists open again at the key that leaves them, over whatever stands near: they do not get to see that key.
MEND = """() => {
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
# At every event, Gradio's script touches all that may show progress: so name little of it, or nothing.
QUIET = {"api_visibility": "private", "show_progress": "hidden", "show_progress_on": []}
LATEST = {
    "trigger_mode": "always_last",
    "queue": False,
    **QUIET,
}  # while somebody types: the last word counts


def shown_on(component: gr.components.Component) -> dict:
    """Options of an event that a person waits for, seen on this component."""
    return {"api_visibility": "private", "show_progress": "minimal", "show_progress_on": [component]}


@dataclass(frozen=True)
class Page:
    """All steps, and what lies around them."""

    visitor: gr.HTML
    machine: gr.HTML  # what it runs on
    limits: gr.HTML
    work: gr.Column
    to_runs: gr.Button  # the header of the steps leads back only
    walk: gr.Walkthrough
    steps: dict[int, gr.Step]
    place: gr.State  # the step that is open
    pictures: pictures.PicturesStep
    teacher: teacher.TeacherStep
    plan: plan.PlanStep
    train: train.TrainStep
    trying: try_it.TryStep
    publishing: publish.PublishStep

    @property
    def of_run(self) -> list:
        """What `show_run` fills, in its order."""
        return [*self.trying.of_run, *self.publishing.of_run]

    @property
    def entrance(self) -> list:
        """What `enter` fills, in its order."""
        around = [self.visitor, self.limits, self.work, self.walk, self.place, self.train.run_id]
        watched = [*self.train.watched, *self.teacher.watched]
        return [*around, *self.pictures.shown, *self.plan.shown, *watched, *self.of_run, self.machine]


def add_page(app: gr.Blocks) -> None:
    """Lays all steps out and connects them."""
    machine = header("D-OPSD LoRA trainer")
    visitor = gr.HTML(visible=False, elem_id="visitor")
    with gr.Column(visible=this_space() is None, elem_id="work") as work:
        limits_of_space = gr.HTML(elem_id="limits")
        to_runs = gr.Button("All runs", size="sm", elem_id="to-runs", elem_classes="to-runs")
        with gr.Walkthrough(elem_id="walk") as walk:
            with gr.Step("Pictures", id=PICTURES, elem_id="step-pictures") as one:
                first = pictures.pictures_step()
            with gr.Step("Teacher", id=TEACHER, elem_id="step-teacher") as two:
                second = teacher.teacher_step()
            with gr.Step("Plan", id=PLAN, elem_id="step-plan") as three:
                third = plan.plan_step()
            with gr.Step("Train", id=TRAIN, elem_id="step-train") as four:
                fourth = train.train_step()
            with gr.Step("Try and publish", id=TRY, elem_id="step-try") as five:
                trying = try_it.try_step()
                publishing = publish.publish_step()
    steps = {PICTURES: one, TEACHER: two, PLAN: three, TRAIN: four, TRY: five}
    page = Page(
        visitor, machine, limits_of_space, work, to_runs, walk, steps, gr.State(NOWHERE), first, second,
        third, fourth, trying, publishing,
    )  # fmt: skip
    _connect_entrance(page, app)
    _connect_pictures(page)
    _connect_teacher(page)
    _connect_plan(page)
    _connect_train(page)
    _connect_try(page)


# --- opening the page


def _connect_entrance(page: Page, app: gr.Blocks) -> None:
    # Both fixed, so that it survives a restart of the server. A run's id opens nothing to others.
    memory = gr.BrowserState(None, storage_key="dopsd-place", secret="only a place in the page")

    def enter(remembered: dict | None, request: gr.Request, oauth_token: gr.OAuthToken | None) -> list:
        token, space = oauth_token.token if oauth_token else None, this_space()
        try:
            check_access(token)
        except AccessError as error:
            told = welcome(space, str(error) if token else "")
            shut = [gr.HTML(told, visible=True), "", gr.Column(visible=False)]
            return [*shut, *[gr.skip()] * (len(page.entrance) - len(shut))]
        draft = pictures.the_draft("")
        run_id, place = _place(request.query_params.get("run"), remembered or {}, bool(draft.items))
        try:
            contents = _contents(page, draft, run_id, place)
        except (KnownFailure, FileNotFoundError):  # a run of another version, or one that is just going
            run_id, place = "", PICTURES
            contents = _contents(page, draft, run_id, place)
        around = [gr.HTML(visible=False), limits(space) if space else "", gr.Column(visible=True)]
        return [*around, gr.Walkthrough(selected=place), place, run_id, *contents, describe_machine()]

    app.load(enter, memory, page.entrance, **QUIET)
    app.load(None, js=MEND)
    gr.on(
        [page.place.change, page.train.run_id.change],
        lambda place, run_id: {"step": place, "run": run_id},
        [page.place, page.train.run_id],
        memory,
        queue=False,
        **QUIET,
    )
    for number, step in page.steps.items():
        at = [page.place, page.train.run_id]
        step.select(_going(number), at, [page.place, memory], queue=False, **QUIET)


def _contents(page: Page, draft: Draft, run_id: str, place: int) -> list:
    """What the steps of a new page show that can be reached from the one that is open."""
    return [
        *pictures.show(draft, as_built=True),
        *(plan.show(draft) if place >= PLAN else _skips(page.plan.shown)),
        *train.look(run_id, {}),
        *teacher.look(draft.id, {}),
        *(show_run(run_id) if place == TRY else _skips(page.of_run)),
    ]


def _going(number: int):
    def go(place: int, run_id: str) -> tuple:
        if place == NOWHERE:  # the page is just being built, and selects its first step by itself
            return gr.skip(), gr.skip()
        # Not by way of `place.change`: a State tells of no change that an unqueued event made.
        return number, {"step": number, "run": run_id}

    return go


def _skips(outputs: list) -> list:
    return [gr.skip()] * len(outputs)


def _place(asked: str | None, remembered: dict, has_pictures: bool) -> tuple[str, int]:
    """The run to show and the step to open: the address's, what this browser had open, or what is at work."""
    runs = {run.id: run for run in list_runs(default_runs_dir())}
    if asked in runs:
        return asked, TRAIN
    known, step = remembered.get("run"), remembered.get("step")
    if known in runs and step in (TRAIN, TRY):
        can_try = run_actions.can_try(runs[known])
        return known, step if can_try else TRAIN
    live = [run.id for run in runs.values() if run.status.busy]
    if live and step not in (PICTURES, TEACHER, PLAN):
        return live[0], TRAIN
    shown = known if known in runs else next(iter(live or runs), "")
    return shown, step if step in (TEACHER, PLAN) and has_pictures else PICTURES


def show_run(run_id: str) -> list:
    """Fills the last step for a run."""
    return [*try_it.show(run_id), *publish.show(run_id)]


# --- the first step


def _connect_pictures(page: Page) -> None:
    step = page.pictures
    draft = step.draft_id
    said = [*step.messages, *(slot.said for slot in step.slots)]
    of_base = [step.folder, step.facts, *said]
    step.base.input(guarded(pictures.choose_base), [draft, step.base], of_base, **shown_on(step.facts))
    # The last name counts: an earlier one may still be asked for.
    gr.on(
        [step.folder.submit, step.folder.blur],
        guarded(pictures.choose_folder),
        [draft, step.folder],
        of_base,
        trigger_mode="always_last",
        **shown_on(step.facts),
    )
    step.real.click(guarded(pictures.use_real_base), draft, [step.base, *of_base], **shown_on(step.facts))
    step.upload.upload(
        guarded(pictures.add_files), [draft, step.upload], [step.upload, *step.shown], **shown_on(step.upload)
    )
    for name, button in step.examples.items():
        button.click(guarded(_example(name)), None, step.shown, **shown_on(step.said))
    step.fresh.click(guarded(pictures.start_afresh), None, step.shown, **shown_on(step.said))
    asked_about = gr.State("")  # another draft may be shown by the time the answer comes

    def ask(draft_id: str) -> list:
        asked = pictures.shown_draft(draft_id)
        whose = f" of {asked.trigger_word}" if asked.trigger_word else ""
        sure = f"Delete {words.count(len(asked.items), 'picture')}{whose}"
        return [asked.id, gr.Row(visible=True), gr.Button(sure)]

    step.throw_away.click(guarded(ask), draft, [asked_about, step.sure, step.really], **QUIET)
    gr.on(
        [step.keep.click, step.really.click],
        lambda: gr.Row(visible=False),
        None,
        step.sure,
        queue=False,
        **QUIET,
    )

    def throw_away(asked: str, draft_id: str) -> list:
        pictures.throw_away(asked)
        return pictures.show(pictures.the_draft("" if draft_id == asked else draft_id))

    step.really.click(guarded(throw_away), [asked_about, draft], step.shown, **shown_on(step.said))

    def go_back_to(chosen: str | None, draft_id: str) -> list:
        # Leaving the list is an `input` too, without a choice or with the last one: what is typed must stay.
        return pictures.go_back_to(chosen) if chosen and chosen != draft_id else _skips(step.shown)

    step.earlier.input(guarded(go_back_to), [step.earlier, draft], step.shown, **shown_on(step.said))
    step.kind.input(guarded(pictures.choose_kind), [draft, step.kind], said, **QUIET)
    now = moment()

    def write_trigger(draft_id: str, word: str, moment: float, request: gr.Request) -> None:
        pictures.write_trigger(request.session_hash, moment, draft_id, word)

    def leave_trigger(draft_id: str, word: str, moment: float, request: gr.Request) -> list:
        write_trigger(draft_id, word, moment, request)  # the last one may still be on its way
        return pictures.say(draft_id)

    typed = [draft, step.trigger, now]
    step.trigger.change(guarded(write_trigger), typed, None, js=STAMP, **LATEST)
    step.trigger.blur(guarded(leave_trigger), typed, said, js=STAMP, queue=False, **QUIET)
    _connect_slots(step, now)

    def to_teacher(draft_id: str) -> list:
        return [gr.Walkthrough(selected=TEACHER), TEACHER, *teacher.look(draft_id, {})]

    outputs = [page.walk, page.place, *page.teacher.watched]
    step.go.click(guarded(to_teacher), draft, outputs, **QUIET)


def _example(name: str):
    def load() -> list:
        return pictures.start_from_example(name)

    return load


def _connect_slots(step: pictures.PicturesStep, now: gr.Number) -> None:
    """One event for all slots alike: a page that describes sixty more opens more slowly."""
    draft = step.draft_id
    # By their names: Gradio makes a component anew, with another `_id`, when it changes.
    numbers = {
        part.elem_id: number for number, slot in enumerate(step.slots) for part in (slot.caption, slot.remove)
    }
    # Gradio sends a set in the order of making: `now` is the last, as STAMP wants it.
    typed = {draft, step.keys, *(slot.caption for slot in step.slots), now}

    def write(values: dict, event: gr.EventData, request: gr.Request) -> None:
        number = numbers[event.target.elem_id]
        caption = values[step.slots[number].caption]
        pictures.write_caption(
            request.session_hash, values[now], values[draft], values[step.keys], number, caption
        )

    def leave(values: dict, event: gr.EventData, request: gr.Request) -> list:
        write(values, event, request)  # the last one may still be on its way
        return pictures.say(values[draft])

    def remove(draft_id: str, keys: list, event: gr.EventData) -> list:
        return pictures.remove(draft_id, keys, numbers[event.target.elem_id])

    said = [*step.messages, *(slot.said for slot in step.slots)]
    # Each counts: the next box may be written in before the server has answered for this one.
    each = {"js": STAMP, "trigger_mode": "multiple", "queue": False, **QUIET}
    gr.on([slot.caption.change for slot in step.slots], guarded(write), typed, None, **each)
    gr.on([slot.caption.blur for slot in step.slots], guarded(leave), typed, said, **each)
    removals = [slot.remove.click for slot in step.slots]
    gr.on(removals, guarded(remove), [draft, step.keys], step.shown, **shown_on(step.said))


# --- the second step


def _connect_teacher(page: Page) -> None:
    step, draft = page.teacher, page.pictures.draft_id

    def check(draft_id: str, seen: dict) -> list:
        teacher.start_check(draft_id)
        return teacher.look(draft_id, seen)

    def cancel(draft_id: str, seen: dict) -> list:
        teacher.cancel_check(draft_id)
        return teacher.look(draft_id, seen)

    step.check.click(guarded(check), [draft, step.seen], step.watched, **QUIET)
    step.cancel.click(guarded(cancel), [draft, step.seen], step.watched, **QUIET)
    step.timer.tick(
        guarded(teacher.look, silent=True), [draft, step.seen], step.watched, queue=False, **QUIET
    )

    def to_plan(draft_id: str) -> list:
        return [gr.Walkthrough(selected=PLAN), PLAN, *plan.show(pictures.the_draft(draft_id))]

    step.go.click(
        guarded(to_plan), draft, [page.walk, page.place, *page.plan.shown], **shown_on(page.plan.needs)
    )


# --- the third step


def _connect_plan(page: Page) -> None:
    step, draft = page.plan, page.pictures.draft_id

    def choose_preset(draft_id: str, preset: str) -> list:
        chosen = pictures.shown_draft(draft_id)
        set_settings(chosen, preset=preset)
        return plan.show(chosen)

    now = moment()
    # Gradio sends a set in the order of making: `now` is the last, as STAMP wants it.
    shown = {draft, step.preset, *step.controls.values(), step.sent, now}

    def keep(values: dict, tab: str) -> dict | None:
        """Keeps what was changed in this tab, and returns all it shows; None: another preset was chosen."""
        chosen = pictures.shown_draft(values[draft])
        if chosen.preset != values[step.preset]:
            return None
        settings = {name: values[control] for name, control in step.controls.items()}
        sent = values[step.sent] or {}
        changed = {name: value for name, value in settings.items() if value != sent.get(name)}
        plan.keep_settings(tab, values[now], chosen, changed)
        return settings

    def change(values: dict, request: gr.Request) -> list:
        settings = keep(values, request.session_hash)
        if settings is None:
            return _skips([step.sent, step.needs, step.start])
        return [settings, *plan.show_needs(pictures.the_draft(values[draft]))]

    def start(values: dict, request: gr.Request) -> list:
        if keep(values, request.session_hash) is None:  # kept here too: the last `change` may be on its way
            raise KnownFailure("Another preset was chosen meanwhile. Reload the page to see it.")
        run_id = plan.start(values[draft])
        return [gr.Walkthrough(selected=TRAIN), TRAIN, run_id, *train.look(run_id, {})]

    step.preset.input(guarded(choose_preset), [draft, step.preset], step.shown, **shown_on(step.needs))
    gr.on(
        [_changed(control) for control in step.controls.values()],
        guarded(change),
        shown,
        [step.sent, step.needs, step.start],
        js=STAMP,
        **LATEST,
    )
    outputs = [page.walk, page.place, page.train.run_id, *page.train.watched]
    step.start.click(guarded(start), shown, outputs, js=STAMP, trigger_mode="once", **shown_on(step.needs))


def _changed(control: gr.components.Component):
    # A text box tells of `input` only for keys that write a character: not for what is pasted or deleted.
    return control.change if isinstance(control, gr.Textbox) else control.input


# --- the fourth step


def _connect_train(page: Page) -> None:
    step = page.train

    def after(action):
        def act(run_id: str, seen: dict) -> list:
            gr.Info(action(run_id), duration=4)
            return train.look(run_id, seen)

        return guarded(act)

    at, watched = [step.run_id, step.seen], step.watched
    step.timer.tick(guarded(train.look, silent=True), at, watched, queue=False, **QUIET)
    step.stop.click(after(run_actions.stop_run), at, watched, **QUIET)
    step.resume.click(after(run_actions.resume_run), at, watched, **QUIET)

    def go_on(run_id: str, seen: dict, more: int | None) -> list:
        if not more:
            raise KnownFailure("Say how many more steps it is to make.")
        gr.Info(run_actions.resume_run(run_id, more), duration=4)
        return train.look(run_id, seen)

    step.go_on.click(guarded(go_on), [*at, step.more], watched, **QUIET)
    step.preview.click(after(run_actions.preview_now), at, watched, **QUIET)
    step.save.click(after(run_actions.save_now), at, watched, **QUIET)

    def choose(run_id: str, seen: dict) -> list:
        return [run_id, gr.Row(visible=False), *train.look(run_id, seen)]

    step.runs.input(guarded(choose), [step.runs, step.seen], [step.run_id, step.sure, *watched], **QUIET)
    # Whatever chose another run: what was open for the last one is not left beside it.
    step.run_id.change(guarded(train.show_beside, silent=True), step.run_id, step.beside, **QUIET)

    asked_about = gr.State("")  # another run may be shown by the time the answer comes

    def delete(asked: str, run_id: str, seen: dict) -> list:
        gr.Info(run_actions.remove_run(asked), duration=4)
        left = next((run.id for run in list_runs(default_runs_dir())), "") if run_id == asked else run_id
        return [left, gr.Row(visible=False), *train.look(left, seen)]

    def ask(run_id: str) -> list:
        name = run_actions.run_name(run_actions.the_run(run_id))
        return [run_id, gr.Row(visible=True), gr.Button(f"Delete {name} for good")]

    step.delete.click(guarded(ask), step.run_id, [asked_about, step.sure, step.really], **QUIET)
    step.keep.click(lambda: gr.Row(visible=False), None, step.sure, queue=False, **QUIET)
    step.really.click(guarded(delete), [asked_about, *at], [step.run_id, step.sure, *watched], **QUIET)

    def again(run_id: str) -> list:
        values = pictures.start_from_run(run_id)
        return [gr.Walkthrough(selected=PLAN), PLAN, *values, *plan.show(pictures.the_draft(""))]

    outputs = [page.walk, page.place, *page.pictures.shown, *page.plan.shown]
    step.clone.click(guarded(again), step.run_id, outputs, **shown_on(page.plan.needs))

    def to_runs(draft_id: str, run_id: str) -> list:
        chosen = run_id or next((run.id for run in list_runs(default_runs_dir())), "")
        shown = [*plan.show(pictures.the_draft(draft_id)), *train.look(chosen, {})]
        return [gr.Walkthrough(selected=TRAIN), TRAIN, chosen, *shown]

    outputs = [page.walk, page.place, step.run_id, *page.plan.shown, *watched]
    page.to_runs.click(guarded(to_runs), [page.pictures.draft_id, step.run_id], outputs, **QUIET)

    def to_try(run_id: str) -> list:
        try_it.cancel_others(run_id)
        return [gr.Walkthrough(selected=TRY), TRY, *show_run(run_id)]

    step.to_try.click(
        guarded(to_try), step.run_id, [page.walk, page.place, *page.of_run], **shown_on(page.trying.title)
    )
    step.ask.click(
        guarded(train.keep_wish), [step.run_id, *step.wish[:-1]], step.wish[-1], **shown_on(step.wish[-1])
    )


# --- the last step


def _told(action: Callable[[str], str]) -> Callable[[str], None]:
    """The action on a run, whose answer is told in passing."""

    def act(run_id: str) -> None:
        gr.Info(action(run_id), duration=4)

    return act


def _connect_try(page: Page) -> None:
    step, run_id = page.trying, page.train.run_id
    drawn = step.draw.click(
        guarded(try_it.draw),
        [run_id, step.prompt, step.seed, step.strength, step.checkpoint],
        [step.slider, step.drawn],
        api_visibility="private",
        trigger_mode="once",
    )
    drawn.success(lambda: gr.Button(interactive=True), None, step.keep, queue=False, **QUIET)
    step.checkpoint.input(guarded(try_it.offer_lora), [run_id, step.checkpoint], step.download, **LATEST)
    step.cancel.click(guarded(_told(try_it.cancel_drawing)), run_id, None, **QUIET)
    card = page.publishing

    def keep(drawing: tuple | None) -> list:
        if not drawing:
            raise KnownFailure("Draw a picture first.")
        return publish.keep(drawing[0], drawing[1])

    step.keep.click(guarded(keep), step.drawn, [card.pictures, card.clear], **QUIET)
    card.clear.click(guarded(publish.clear), run_id, [card.pictures, card.clear], **QUIET)

    def preview(run_id: str, name: str, private: bool, captions: bool, checkpoint: str) -> object:
        text = publish.preview_card(run_id, name, private, captions, try_it.chosen_step(checkpoint))
        return gr.Textbox(text, visible=True)

    settings = [run_id, *card.settings, step.checkpoint]
    card.preview.click(guarded(preview), settings, card.card, **shown_on(card.card))
    card.timer.tick(guarded(publish.look, silent=True), run_id, card.watched, queue=False, **QUIET)
    card.cancel.click(guarded(_told(publish.cancel)), run_id, None, **QUIET)
    pushed = card.publish.click(
        guarded(publish.push),
        [*settings, card.token],
        [*card.watched, card.token],
        trigger_mode="once",
        api_visibility="private",
    )
    pushed.failure(lambda: "", None, card.token, queue=False, **QUIET)
