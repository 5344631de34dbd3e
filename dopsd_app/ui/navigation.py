"""The way through the steps: which one is open, what the browser remembers of it, and its Back button."""

from dataclasses import dataclass

import gradio as gr
from gradio.blocks import Block

from dopsd_app.ui.events import IN_BROWSER, listen
from dopsd_app.ui.server.guard import Handler

NOWHERE, PICTURES, TEACHER, PLAN, TRAIN, TRY = 0, 1, 2, 3, 4, 5
NAMES = {PICTURES: "pictures", TEACHER: "teacher", PLAN: "plan", TRAIN: "train", TRY: "try"}
# Each step that is opened is an entry of the browser's history: its Back button leads to the step before, and
# not out of the page. A step that was opened by that button is there already.
REMEMBER_PLACE = """(place) => {
    if (!place) return;
    localStorage.setItem("dopsd-place", place);
    const before = history.state?.place;
    if (place !== before)
        history[before ? "pushState" : "replaceState"]({ ...history.state, place }, "");
}"""
# A step was opened: by its button, or by an answer. The page that is just being built has no place yet, and
# selects its first step by itself.
FOLLOW = "(place) => place && NUMBER"
REMEMBER_RUN = """(run) => { if (run) localStorage.setItem("dopsd-run", run); }"""
REMEMBERED = (
    """() => [Number(localStorage.getItem("dopsd-place")), localStorage.getItem("dopsd-run") || ""]"""
)
# The button of a step that the browser goes back (or forth) to. Gradio's own lead back only.
GO_BACK = """() => window.addEventListener("popstate", (event) => {
    const place = event.state?.place;
    if (place) document.getElementById(`reopen-${place}`)?.click();
})"""


@dataclass(frozen=True)
class Navigation:
    """What tells which step is open."""

    walk: gr.Walkthrough
    place: gr.Number  # of the open step
    reopen: dict[int, gr.Button]  # hidden: the browser's own buttons press them

    @property
    def outputs(self) -> list[Block]:
        return [self.walk, self.place]

    def go_to(self, place: int) -> dict:
        """Opens a step."""
        return {self.walk: gr.Walkthrough(selected=place), self.place: place}

    def connect(
        self, app: gr.Blocks, steps: dict[int, gr.Step], reopen: Handler, inputs: list, outputs: list
    ) -> None:
        """Follows the header of the steps, and has `reopen` called for a step that is gone back to."""
        for number, step in steps.items():
            js = FOLLOW.replace("NUMBER", str(number))
            step.select(None, self.place, self.place, js=js, **IN_BROWSER)
        self.place.change(None, self.place, None, js=REMEMBER_PLACE, **IN_BROWSER)
        app.load(None, js=GO_BACK, **IN_BROWSER)
        buttons = [button.click for button in self.reopen.values()]
        listen(buttons, reopen, inputs, [*self.outputs, *outputs])


def navigation(walk: gr.Walkthrough) -> Navigation:
    """What goes with the steps of a page."""
    reopen = {
        place: gr.Button(name, elem_id=f"reopen-{place}", elem_classes="reopen")
        for place, name in NAMES.items()
    }
    return Navigation(walk, gr.Number(NOWHERE, precision=0, visible=False), reopen)
