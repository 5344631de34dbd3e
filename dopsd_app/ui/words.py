"""How the page says numbers, states and pictures: short, for people."""

import html
import re
from collections.abc import Iterable
from pathlib import Path

import gradio as gr

from dopsd_app.progress import words_for_count, words_for_disk, words_for_download
from dopsd_app.progress import words_for_time as in_time
from dopsd_app.ui.server.guard import plain_text
from dopsd_app.ui.server.picture_files import address, read_size

count, disk, download = words_for_count, words_for_disk, words_for_download  # the page's words for them

ENLARGED = 2048  # pixels of the longer side of a picture that was clicked on

STATES = {
    "draft": "Not started",
    "queued": "Waiting in the queue",
    "downloading": "Fetching the base model",
    "hashing": "Reading the base model's files",
    "checking": "Checking the base model",
    "loading": "Loading the base model",
    "encoding": "Reading pictures and captions",
    "drawing": "Drawing what the base model makes of your prompts",
    "training": "Training",
    "beside": "Drawing what was asked for, then it trains on",
    "captioning": "Writing captions",
    "stopping": "Stopping after this step",
    "stopped": "Stopped",
    "failed": "Failed",
    "finished": "Finished",
    "interrupted": "Interrupted",
}


def pace(seconds: float) -> str:
    """Seconds per step with two significant digits or so."""
    return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s" if seconds < 100 else in_time(seconds)


def memory(number_of_bytes: float) -> str:
    """An amount of memory, in the units that cards and memory are sold in."""
    gigabytes = number_of_bytes / 1024**3
    return f"{gigabytes:.1f} GB" if gigabytes >= 1 else f"{max(1, round(gigabytes * 1024))} MB"


def text(words: str) -> str:
    """Anybody's words, safe inside HTML."""
    return html.escape(words, quote=True)


def message(words: str) -> str:
    """What the program says, as HTML: what stands in backticks, for terminals, is shown as code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", text(words))


def passing(words: str, *, title: str = "", duration: float = 4) -> None:
    """Says something in a corner for so many seconds; with a title, it warns."""
    if title:
        gr.Warning(plain_text(words), title=title, duration=duration)
    else:
        gr.Info(plain_text(words), duration=duration)


def link(address: str, name: str) -> str:
    """A link that opens in a tab of its own; an address that is no web address is shown as text."""
    if not re.fullmatch(r"https?://[^\s\"'<>]+", address):
        return text(name)
    return f"<a href='{text(address)}' target='_blank' rel='noopener'>{text(name)}</a>"


def lines(messages: Iterable[str], kind: str) -> str:
    """Messages as paragraphs: a "problem" to be mended, "advice", or a "note"."""
    return "".join(f"<p class='{kind}'>{message(sentence)}</p>" for sentence in messages)


def foot(line: str) -> str:
    """What stands beside the button at a step's foot: what is missing, or what comes next, in one line."""
    return f"<p>{message(line)}</p>" if line else ""


def image(path: Path, alt: str, longest: int = 512) -> str:
    """An <img> of a picture of a draft, a run or a job; empty where it is not there or not whole."""
    try:
        width, height = read_size(str(path), path.stat().st_mtime_ns)
        source = address(path, longest)
    except OSError:  # deleted, or not whole: its place stays empty
        return ""
    share = min(1.0, longest / max(width, height))
    size = f'width="{max(1, round(width * share))}" height="{max(1, round(height * share))}"'
    return f'<img src="{text(source)}" alt="{text(alt)}" {size} loading="lazy" decoding="async">'


def picture(path: Path, alt: str, *, longest: int = 512, group: str = "", caption: str = "") -> str:
    """As `image`, and a click enlarges it: `caption` stands below it then, or else `alt`.

    The arrows of the enlarged picture walk through all of the same `group`.
    """
    if not (small := image(path, alt, longest)):
        return ""
    data = "".join(
        f' data-{name}="{text(value)}"' for name, value in (("group", group), ("caption", caption)) if value
    )
    return f'<a class="enlarge" href="{text(address(path, ENLARGED))}"{data}>{small}</a>'


def code_box(label: str, elem_id: str, visible: bool = True) -> gr.Textbox:
    """A box of text in a fixed pitch to read and copy."""
    return gr.Textbox(
        label=label,
        lines=12,
        max_lines=24,
        interactive=False,
        buttons=["copy"],
        visible=visible,
        elem_id=elem_id,
        elem_classes="code",
    )
