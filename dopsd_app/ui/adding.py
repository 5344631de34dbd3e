"""How pictures and captions come into a draft: files, a folder, and what became of them."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import gradio as gr
from gradio.blocks import Block

from dopsd_app.data.uploads import Added, add_pictures, add_sources
from dopsd_app.ui import words
from dopsd_app.ui.cards import Cards
from dopsd_app.ui.events import listen, source_of
from dopsd_app.ui.server.uploads import removed_afterwards
from dopsd_app.ui.shown_draft import ShownDraft, draft_of, key_at, page_of, read_shown

if TYPE_CHECKING:
    from dopsd_app.ui.pictures import PicturesStep

UNFOLDED = 3  # messages that are read at once; more of them are folded
# Gradio takes no folder that is dropped: its files are put where a person's choice of files would be.
DROPPED_FOLDER = """
if (!window.dopsdDrops) {
    window.dopsdDrops = true;
    const files_in = async (entry) => {
        if (entry.isFile) return [await new Promise((take, fail) => entry.file(take, fail))];
        const reader = entry.createReader(), found = [];
        // A browser lists a folder in parts, until one is empty.
        for (let part; (part = await new Promise((take, fail) => reader.readEntries(take, fail))).length;)
            found.push(...part);
        return (await Promise.all(found.map(files_in))).flat();
    };
    document.addEventListener("drop", async (event) => {
        if (!event.target.closest?.("#upload")) return;
        const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
        const input = document.querySelector("#upload input[type=file]");
        if (!input || !entries.some((entry) => entry.isDirectory)) return;
        event.preventDefault();
        event.stopPropagation();
        const transfer = new DataTransfer();
        for (const file of (await Promise.all(entries.map(files_in))).flat()) transfer.items.add(file);
        input.files = transfer.files;
        input.dispatchEvent(new Event("change", { bubbles: true }));
    }, true);
}
"""


@dataclass(eq=False)
class Adding:
    """The places to drop files, and what is said of the last ones."""

    step: "PicturesStep" = field(init=False)
    upload: gr.File
    folder: gr.UploadButton
    report: gr.HTML

    @property
    def outputs(self) -> list[Block]:
        """What `clear` fills."""
        return [self.report]

    def clear(self) -> dict:
        """Forgets what was said of the last files."""
        return {self.report: ""}

    def connect(self, step: "PicturesStep") -> None:
        """Connects the events."""
        self.step = step
        cards = step.cards
        outputs = [self.upload, self.folder, *step.outputs]
        chosen = {step.draft, self.upload, self.folder}
        listen(
            [self.upload.upload, self.folder.upload], self.add_files, chosen, outputs, progress_on=self.upload
        )
        uploads = [slot.add for slot in cards.slots]
        added = [upload.upload for upload in uploads]
        progress = {"progress_on": step.message}
        listen(added, self.add_sources, {step.draft, *uploads}, step.outputs, **progress)

    def add_files(self, values: dict) -> dict:
        """Adds uploaded pictures and captions; the server's copies of the uploads are removed."""
        files = [*(values[self.upload] or []), *(values[self.folder] or [])]
        with removed_afterwards(files):
            shown = read_shown(ShownDraft, values[self.step.draft])
            added = add_pictures(draft_of(values[self.step.draft]), files)
        # The first new picture is to be seen.
        page = page_of(added.draft, added.keys[0]) if added.keys else shown.page
        shown_now = self.step.show_page(added.draft, page)
        # A folder's button would bring the files before back at its next choice.
        emptied = {self.upload: None, self.folder: gr.UploadButton(value=None)}
        return {**shown_now, self.report: report(added), **emptied}

    def add_sources(self, values: dict, event: gr.EventData) -> dict:
        """Adds uploaded pictures to what the picture on a card is made from."""
        cards: Cards = self.step.cards
        number = int(source_of(event).removeprefix("add-source-")) - 1
        shown = values[self.step.draft]
        add = cards.slots[number].add
        files = values[add] or []
        with removed_afterwards(files):
            added = add_sources(draft_of(shown), key_at(shown, number), files)
        step = self.step.show_page(added.draft, read_shown(ShownDraft, shown).page)
        return {**step, self.report: report(added), add: gr.UploadButton(value=None)}


def adding() -> Adding:
    """Lays the places out, and what is said of the last files below them."""
    # Files of any kind: Gradio refuses all of an upload where one of them is of another.
    upload = gr.File(
        label="Pictures, captions, a .zip",
        file_count="multiple",
        height=150,
        elem_id="upload",
    )
    folder = gr.UploadButton("Add a folder", file_count="directory", size="sm", elem_id="upload-folder")
    return Adding(upload, folder, gr.HTML(elem_id="upload-report", js_on_load=DROPPED_FOLDER))


def report(added: Added) -> str:
    """What became of files, in one block: how many were taken, then what was not, then the rest."""
    parts = []
    if added.keys:
        parts.append(f"<p class='done'>{words.count(len(added.keys), 'picture')} added.</p>")
    parts.append(_folded(added.problems, "problem", "file was not taken", "files were not taken"))
    parts.append(_folded(added.notes, "note", "note", "notes"))
    inner = "".join(parts)
    return f"<div class='report-of-files' role='status'>{inner}</div>" if inner else ""


def _folded(sentences: tuple[str, ...], kind: str, one: str, many: str) -> str:
    lines = words.lines(sentences, kind)
    if len(sentences) <= UNFOLDED:
        return lines
    head = f"{len(sentences)} {one if len(sentences) == 1 else many}"
    return f"<details><summary class='{kind}'>{head}: show which</summary>{lines}</details>"
