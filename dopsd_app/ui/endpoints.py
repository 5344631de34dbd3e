"""Every action of the page as a named endpoint of plain values, for `gradio_client` and scripts."""

import functools
import typing
from dataclasses import asdict
from pathlib import Path

import gradio as gr
from pydantic import ConfigDict, ValidationError, validate_call

from dopsd_app.checks.verdict import rows_drawn
from dopsd_app.config import list_presets
from dopsd_app.data.drafts import (
    Draft,
    check_draft,
    default_drafts_dir,
    draft_config,
    list_drafts,
    new_draft,
    note_repairs,
    remove_picture,
    set_caption,
    set_settings,
)
from dopsd_app.data.drafts import remove_sources as remove_from_picture
from dopsd_app.data.uploads import add_pictures as add_to_draft
from dopsd_app.data.uploads import add_sources as add_to_picture
from dopsd_app.data.uploads import clone_run as clone_to_draft
from dopsd_app.data.uploads import list_examples
from dopsd_app.data.uploads import load_example as load_as_draft
from dopsd_app.errors import KnownFailure
from dopsd_app.hub.card_pictures import clear_pictures
from dopsd_app.hub.push import published
from dopsd_app.hub.push_job import wait_for_push
from dopsd_app.hub.scheduled_push import read_scheduled_push, waits_for_sign_in
from dopsd_app.jobs.lora_file import find_lora
from dopsd_app.jobs.watch import thin_out
from dopsd_app.models.catalog import CATALOG
from dopsd_app.ui import plan, publish, run_actions, shown_draft, teacher, try_sources
from dopsd_app.ui.drawing_endpoints import (
    copied,
    draw,
    draw_grid,
    keep_for_card,
    list_drawings,
    show_drawing,
    wait_for,
)
from dopsd_app.ui.picture_requests import cancel_drawing
from dopsd_app.ui.server.guard import Handler, guarded
from dopsd_app.ui.server.lora_copies import lora_copy
from dopsd_app.ui.server.uploads import removed_afterwards
from dopsd_app.ui.use_file import lora_name

PHASES = ("encoding", "training", "drawing")  # of a plan's memory
TYPES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "an object",
    list[dict]: "a list of objects",
    list[str]: "a list of texts",
}


def add_endpoints() -> None:
    """Adds them to the page that is being built."""
    for function in ENDPOINTS:
        gr.api(guarded(typed(function)), api_name=function.__name__, api_description=function.__doc__)


def typed(function: Handler) -> Handler:
    """The function, with a sentence for a value of another type than it takes: clients send any JSON."""
    checked = validate_call(config=ConfigDict(strict=True))(function)
    kinds = list(typing.get_type_hints(function).items())  # the last one is what is returned

    @functools.wraps(function)
    def with_checked_types(*values):
        try:
            return checked(*values)
        except ValidationError as error:
            if error.title != function.__name__:  # another one's, from within the function
                raise
            place = error.errors()[0]["loc"][0]
            assert isinstance(place, int)  # no value is given by name
            name, kind = kinds[place]
            raise KnownFailure(f"`{name}` must be {TYPES[kind]}.") from None

    return with_checked_types


def list_choices() -> dict:
    """What can be chosen: base models, presets for them, and examples, each with its name and what it is."""
    return {
        "base_models": {name: facts.description for name, facts in CATALOG.items()},
        "presets": {preset.name: preset.description for preset in list_presets()},
        "examples": {example.name: example.label for example in list_examples()},
    }


def list_all_drafts() -> list[dict]:
    """All drafts, the one that was changed last first: id, trigger word and number of pictures."""
    return [
        {"id": draft.id, "trigger_word": draft.trigger_word, "pictures": len(draft.items)}
        for draft in list_drafts(default_drafts_dir())
    ]


def show_draft(draft_id: str) -> dict:
    """A draft's pictures, captions, settings and problems; "" means the draft that was changed last."""
    return _describe(shown_draft.the_draft(draft_id))


def begin_draft() -> dict:
    """Begins an empty draft."""
    return _describe(new_draft(default_drafts_dir()))


def load_example(name: str) -> dict:
    """Begins a draft with an example's pictures: "zorp" or "mibbit"."""
    return _describe(load_as_draft(default_drafts_dir(), name))


def clone_run(run_id: str) -> dict:
    """Begins a draft with a run's pictures, captions and settings."""
    run = run_actions.the_run(run_id)
    return _describe(clone_to_draft(default_drafts_dir(), run.config, run.dataset))


def use_settings(draft_id: str, run_id: str) -> dict:
    """Gives a draft a run's settings in place of its own; trigger word, name and prompts stay the draft's."""
    draft, remarks = run_actions.take_settings(shown_draft.the_draft(draft_id), run_id)
    return {**_describe(draft), "notes": remarks}


def add_pictures(draft_id: str, files: list[dict]) -> dict:
    """Adds pictures and .txt captions of the same names: `[handle_file("1.png"), handle_file("1.txt")]`."""
    paths = _uploaded(files)
    with removed_afterwards(paths):
        added = add_to_draft(shown_draft.the_draft(draft_id), paths)
    return {**_describe(added.draft), "refused": list(added.problems), "notes": list(added.notes)}


def _uploaded(files: list[dict]) -> list[Path]:
    for file in files:
        # Only what carries this mark was checked by Gradio to be an upload; another path is not ours to read.
        marked = isinstance(file, dict) and file.get("meta") == {"_type": "gradio.FileData"}
        if not marked or not isinstance(file.get("path"), str):
            raise KnownFailure("Give files as `handle_file(...)` of gradio_client makes them.")
    return [Path(file["path"]) for file in files]


def caption_picture(draft_id: str, picture: str, captions: str) -> dict:
    """Writes the captions of a picture, given by its key: one per line."""
    return _describe(set_caption(shown_draft.the_draft(draft_id), picture, captions))


def add_sources(draft_id: str, picture: str, files: list[dict]) -> dict:
    """Adds pictures to start from to a picture, given by its key: `[handle_file("1_source.png")]`."""
    paths = _uploaded(files)
    with removed_afterwards(paths):
        added = add_to_picture(shown_draft.the_draft(draft_id), picture, paths)
    return {**_describe(added.draft), "refused": list(added.problems)}


def remove_sources(draft_id: str, picture: str) -> dict:
    """Removes all pictures to start from of a picture, given by its key."""
    return _describe(remove_from_picture(shown_draft.the_draft(draft_id), picture))


def remove_from_draft(draft_id: str, picture: str) -> dict:
    """Removes a picture, given by its key."""
    return _describe(remove_picture(shown_draft.the_draft(draft_id), picture))


def change_settings(draft_id: str, settings: dict) -> dict:
    """Changes settings of a draft by name, "preset" and "kind" ("subject", "style", "edit") among them."""
    chosen = set_settings(shown_draft.the_draft(draft_id), **settings)
    draft_config(chosen)  # raises for what cannot work
    return _describe(chosen)


def check_teacher(draft_id: str) -> dict:
    """Draws what the teacher sees and waits for it: score, verdict, a sentence, and for up to four pictures
    what is drawn from the caption and what from caption and picture."""
    draft = shown_draft.the_draft(draft_id)
    drawing = teacher.start_check(draft)
    wait_for(drawing)
    drawn = [
        {"caption": copied(from_caption), "teacher": copied(by_teacher)}
        for *_, from_caption, by_teacher in rows_drawn(drawing.path)
    ]
    return {**teacher.show_check(shown_draft.the_draft(draft.id)), "drawn": drawn}


def cancel_check(draft_id: str) -> str:
    """Stops the draft's check after the picture at hand."""
    teacher.cancel_check(shown_draft.the_draft(draft_id))
    return "Cancelled."


def make_plan(draft_id: str) -> dict:
    """What a run of the draft would need: time, memory, disk, and the reasons that it cannot start."""
    made = plan.plan_draft(shown_draft.the_draft(draft_id))
    fitted = made.fitted
    told = {name: value for name, value in asdict(made).items() if name != "fitted"}
    phases = {name: getattr(fitted.memory, name) for name in PHASES} if fitted else {}
    how = fitted.plan.to_fields() if fitted else {}
    return {**told, "memory": made.memory, "memory_by_phase": phases, "memory_plan": how}


def start(draft_id: str) -> str:
    """Starts a run of the draft, or puts it into the queue; returns its id."""
    return plan.start(shown_draft.the_draft(draft_id))


def show_pictures(run_id: str) -> dict:
    """The pictures of a run, oldest first: the states of its roll-outs, and a sample of each prompt.

    Of many steps the newest, and evenly chosen ones of those before. The samples of step 0 are the base's.
    An earlier version saved all of a step in one picture, without prompts.
    """
    view = run_actions.watcher.read(run_actions.the_run(run_id))
    samples = view.samples.few
    rollouts = [
        {
            "step": shown.step,
            "student": [copied(file) for file in shown.student],
            "teacher": [copied(file) for file in shown.teacher],
        }
        for shown in thin_out(view.rollouts)
    ]
    drawn = [
        {"step": step, "prompt": prompt, "seed": samples.seed, "picture": copied(file)}
        for step, files in samples.steps
        for prompt, file in zip(samples.prompts, files, strict=False)
    ]
    sheets = [{"step": step, "prompt": "", "picture": copied(file)} for step, file in view.sheets]
    return {"rollouts": rollouts, "samples": [*sheets, *drawn]}


def show_scheduled_push(run_id: str) -> dict:
    """What is to happen when a run has finished, what became of it, and where the LoRA was published last."""
    chosen = run_actions.the_run(run_id)
    asked = read_scheduled_push(chosen)
    return {
        "push": asked.publication is not None,
        **(asdict(asked.publication) if asked.publication else {}),
        "done": asked.done,
        "reason": asked.reason,
        "waits_for_sign_in": waits_for_sign_in(chosen, asked),
        "published": place.link if (place := published(chosen)) else "",
    }


def keep_sources(run_id: str, files: list[dict]) -> str:
    """Keeps pictures for a run's LoRA to start from; returns the name that `draw` takes them by."""
    paths = _uploaded(files)
    with removed_afterwards(paths):
        return try_sources.keep_sources(run_actions.the_run(run_id), paths)


def clear_card(run_id: str) -> None:
    """Takes all pictures off the run's model card."""
    clear_pictures(run_actions.the_run(run_id))


def download_lora(run_id: str, step: int = 0) -> dict:
    """The LoRA file of a run; `step` 0 takes the finished one, or the newest checkpoint."""
    chosen = run_actions.the_run(run_id)
    file = find_lora(chosen, step or None)
    return gr.FileData(path=lora_copy(chosen, file, lora_name(chosen, file))).model_dump()


def preview_card(run_id: str, name: str, private: bool, with_captions: bool, step: int = 0) -> str:
    """The text of the model card as it would be published; `step` 0 takes the finished LoRA."""
    return publish.preview_card(run_id, name, private, with_captions, step or None)


def publish_lora(
    run_id: str,
    name: str,
    private: bool,
    with_captions: bool,
    step: int = 0,
    oauth_token: str | None = None,
) -> str:
    """Publishes a run's LoRA with the client's token, or the one of `hf auth login`; returns the link.

    `step` 0 takes the finished LoRA.
    """
    job = publish.ask(run_id, name, private, with_captions, step or None, "", oauth_token)
    return wait_for_push(job)


def _describe(draft: Draft) -> dict:
    problems, notes = check_draft(draft), note_repairs(draft)
    about = ("key", "name", "caption", "creature")
    return {
        "id": draft.id,
        "kind": draft.kind,
        "preset": draft.preset,
        "settings": draft.settings,
        "pictures": [
            {
                **{name: getattr(item, name) for name in about},
                "sources": [source.name for source in item.sources],
                "problems": problems.get(item.key, ()),
                "notes": notes.get(item.key, ()),
            }
            for item in draft.items
        ],
        "problems": [problem for found in problems.values() for problem in found],
    }


ENDPOINTS: tuple[Handler, ...] = (
    list_choices,
    list_all_drafts,
    show_draft,
    begin_draft,
    load_example,
    clone_run,
    use_settings,
    add_pictures,
    caption_picture,
    add_sources,
    remove_sources,
    remove_from_draft,
    change_settings,
    check_teacher,
    cancel_check,
    make_plan,
    start,
    run_actions.list_all_runs,
    run_actions.show_run,
    run_actions.stop_run,
    run_actions.resume_run,
    run_actions.preview_now,
    run_actions.save_now,
    run_actions.read_log,
    run_actions.rename_run,
    run_actions.write_notes,
    run_actions.remove_run,
    run_actions.schedule_push,
    show_scheduled_push,
    show_pictures,
    keep_sources,
    draw,
    draw_grid,
    list_drawings,
    show_drawing,
    cancel_drawing,
    download_lora,
    keep_for_card,
    clear_card,
    preview_card,
    publish_lora,
)
