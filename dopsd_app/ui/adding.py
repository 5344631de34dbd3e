"""How pictures and captions come into a draft: files, a folder, and what became of them."""

import functools
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import gradio as gr
from gradio.blocks import Block
from gradio_client.utils import strip_invalid_filename_characters

from dopsd_app.data.caption_file import TABLES
from dopsd_app.data.drafts import Draft
from dopsd_app.data.folder import is_picture
from dopsd_app.data.kept_pictures import stem_of
from dopsd_app.data.uploads import Added, Count, add_folder, add_pictures, add_sources, together
from dopsd_app.errors import KnownFailure
from dopsd_app.ui import words
from dopsd_app.ui.cards import Cards
from dopsd_app.ui.events import WRITES_DRAFT, held, listen, source_of
from dopsd_app.ui.server.uploads import removed_afterwards
from dopsd_app.ui.shown_draft import ShownDraft, draft_of, key_at, page_of, read_shown, show_page

if TYPE_CHECKING:
    from dopsd_app.ui.pictures import PicturesStep

UNCOUNTED = 3  # pictures that are read before anybody asks how far it is
UNFOLDED = 3  # messages that are read at once; more of them are folded
# Gradio takes no folder that is dropped: its files are put where a person's choice of files would be. And of
# a file it sends its name alone: how a folder is laid out goes along with the event.
DROPPED_FOLDER = """
if (!window.dopsdDrops) {
    window.dopsdDrops = true;
    const files_in = async (entry) => {
        if (entry.isFile) {
            const file = await new Promise((take, fail) => entry.file(take, fail));
            return [[entry.fullPath.slice(1), file]];
        }
        const reader = entry.createReader(), found = [];
        // A browser lists a folder in parts, until one is empty.
        for (let part; (part = await new Promise((take, fail) => reader.readEntries(take, fail))).length;)
            found.push(...part);
        return (await Promise.all(found.map(files_in))).flat(1);
    };
    document.addEventListener("drop", async (event) => {
        if (!event.target.closest?.("#upload")) return;
        window.dopsdPaths = [];
        const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
        const input = document.querySelector("#upload input[type=file]");
        if (!input || !entries.some((entry) => entry.isDirectory)) return;
        event.preventDefault();
        event.stopPropagation();
        const transfer = new DataTransfer();
        const chosen = (await Promise.all(entries.map(files_in))).flat(1);
        for (const [, file] of chosen) transfer.items.add(file);
        input.files = transfer.files;
        input.dispatchEvent(new Event("change", { bubbles: true }));
        window.dopsdPaths = chosen.map(([path]) => path);
    }, true);
    document.addEventListener("change", (event) => {
        const input = event.target;
        if (input.type != "file" || !(input.webkitdirectory || input.closest("#upload"))) return;
        window.dopsdPaths = [...input.files].map((file) => file.webkitRelativePath || file.name);
    }, true);
}
"""
SEND_PATHS = "(shown, files, folder) => [shown, files, folder, window.dopsdPaths ?? []]"


@dataclass(eq=False)
class Adding:
    """The places to drop files, and what is said of the last ones."""

    step: "PicturesStep" = field(init=False)
    upload: gr.File
    folder: gr.UploadButton
    paths: gr.JSON  # of the files, in a folder that was chosen: the page's script fills it
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
        chosen = [step.draft, self.upload, self.folder, self.paths]
        uploaded = [self.upload.upload, self.folder.upload]
        listen(uploaded, self.add_files, chosen, outputs, js=SEND_PATHS, progress_on=self.upload)
        uploads = [slot.add for slot in cards.slots]
        added = [upload.upload for upload in uploads]
        given, progress = {*cards.typed, *uploads}, {"progress_on": step.message}
        listen(added, self.add_sources, given, step.outputs, **progress, **WRITES_DRAFT)

    def add_files(
        self,
        shown_draft: object,
        upload: list[str] | None,
        folder: list[str] | None,
        paths: object,
        # Gradio finds it by this value, and gives each call one of its own.
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> dict:
        """Adds uploaded pictures and captions; the server's copies of the uploads are removed."""
        files = [*(upload or []), *(folder or [])]
        with removed_afterwards(files):
            shown, before = read_shown(ShownDraft, shown_draft), draft_of(shown_draft)
            described = _described(before, files)
            added = _add(before, files, paths, functools.partial(_show_count, progress))
        # Somebody may be typing on a card: the page is not turned, and no box is filled but by its own file.
        now = show_page(added.draft, shown.page)
        captions = {item.key: item.caption for item in added.draft.items if item.key in described}
        answer = self.step.show_page(added.draft, shown.page, shown.keys)
        answer |= self.step.cards.show_captions(added.draft, now, only=captions)
        if added.draft.trigger_word != before.trigger_word and not before.trigger_word:
            answer |= self.step.trigger.fill(added.draft.trigger_word)
        answer |= self.step.tools.open(added.draft)
        # A folder's button would bring the files before back at its next choice.
        emptied = {self.upload: None, self.folder: gr.UploadButton(value=None)}
        return {**answer, self.report: report(added, now), **emptied}

    def add_sources(self, values: dict, event: gr.EventData) -> dict:
        """Adds uploaded pictures to what the picture on a card is made from."""
        cards: Cards = self.step.cards
        number = int(source_of(event).removeprefix("add-source-")) - 1
        shown = values[self.step.draft]
        add = cards.slots[number].add
        files = values[add] or []
        with removed_afterwards(files):
            added = add_sources(cards.keep_typed(values), key_at(shown, number), files)
        known = read_shown(ShownDraft, shown)
        step = self.step.show_page(added.draft, known.page, known.keys)
        return {**step, self.report: report(added), add: gr.UploadButton(value=None)}


def adding() -> Adding:
    """Lays the place out, and what is said of the last files below it; the folder's button goes elsewhere."""
    # Files of any kind: Gradio refuses all of an upload where one of them is of another.
    upload = gr.File(
        label="Pictures, captions, a .zip",
        file_count="multiple",
        height=110,
        elem_id="upload",
    )
    folder = gr.UploadButton(
        "Add a folder", file_count="directory", size="sm", elem_id="upload-folder", render=False
    )
    return Adding(upload, folder, held(), gr.HTML(elem_id="upload-report", js_on_load=DROPPED_FOLDER))


def report(added: Added, shown: ShownDraft | None = None) -> str:
    """What became of files, in one block: how many were taken, then what was not, then the rest.

    `shown` are the cards at hand: where the new ones are on others, it is said where.
    """
    parts = []
    if added.keys:
        first = page_of(added.draft, added.keys[0])
        where = "" if shown is None or first == shown.page else f" The first is on page {first + 1} of cards."
        parts.append(f"<p class='done'>{words.count(len(added.keys), 'picture')} added.{where}</p>")
    parts.append(_folded(added.problems, "problem", "file was not taken", "files were not taken"))
    parts.append(_folded(added.notes, "note", "note", "notes"))
    inner = "".join(parts)
    return f"<div class='report-of-files' role='status'>{inner}</div>" if inner else ""


def _show_count(progress: gr.Progress, done: int, total: int) -> None:
    if total > UNCOUNTED:
        progress((done, total), desc="Pictures read", unit="")


def _add(draft: Draft, files: list[str], paths: object, count: Count) -> Added:
    """Adds files as they lay in the folders that were chosen, where the page has told."""
    names = [str(path) for path in paths] if isinstance(paths, list) else []
    if [strip_invalid_filename_characters(PurePosixPath(name).name) for name in names] != [
        Path(file).name for file in files
    ]:
        if len({Path(file).name for file in files}) < len(files):
            raise KnownFailure("Several of these files have the same name. Send the folder as a .zip.")
        return add_pictures(draft, files, count)
    folders: dict[str, list[tuple[str, str]]] = {}
    for name, file in zip(names, files, strict=True):
        folders.setdefault(name.partition("/")[0] if "/" in name else "", []).append((name, file))
    loose = [file for _, file in folders.pop("", [])]
    parts = [add_pictures(draft, loose, count)] if loose or not folders else []
    return together([*parts, *(add_folder(draft, inside, count) for inside in folders.values())])


def _described(draft: Draft, files: list[str]) -> set[str]:
    """The keys of the draft's pictures whose captions may be in these files."""
    texts = [Path(file) for file in files if not is_picture(Path(file))]
    stems = {stem_of(path.name) for path in texts}
    table = any(path.name.casefold() in TABLES for path in texts)
    return {item.key for item in draft.items if table or item.stem in stems}


def _folded(sentences: tuple[str, ...], kind: str, one: str, many: str) -> str:
    lines = words.lines(sentences, kind)
    if len(sentences) <= UNFOLDED:
        return lines
    head = f"{len(sentences)} {one if len(sentences) == 1 else many}"
    return f"<details><summary class='{kind}'>{head}: show which</summary>{lines}</details>"
