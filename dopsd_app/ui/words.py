"""How the page says numbers, states and pictures: short, for people."""

import base64
import html
import re
from collections.abc import Iterable
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import gradio as gr
from PIL import Image

from dopsd_app.progress import words_for_count, words_for_disk, words_for_download
from dopsd_app.progress import words_for_time as in_time

count, disk, download = words_for_count, words_for_disk, words_for_download  # the page's words for them

STATES = {
    "draft": "Not started",
    "queued": "Waiting in the queue",
    "downloading": "Fetching the base model",
    "hashing": "Reading the base model's files",
    "checking": "Checking the base model",
    "loading": "Loading the base model",
    "encoding": "Reading pictures and captions",
    "training": "Training",
    "drawing": "Drawing pictures, then it trains on",
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


def link(address: str, name: str) -> str:
    """A link that opens in a tab of its own; an address that is no web address is shown as text."""
    if not re.fullmatch(r"https?://[^\s\"'<>]+", address):
        return text(name)
    return f"<a href='{text(address)}' target='_blank' rel='noopener'>{text(name)}</a>"


def lines(messages: Iterable[str], kind: str) -> str:
    """Messages as paragraphs: a "problem" to be mended, "advice", or a "note"."""
    return "".join(f"<p class='{kind}'>{message(sentence)}</p>" for sentence in messages)


def image(path: Path, alt: str, longest: int = 512) -> str:
    """An <img> that holds the picture itself: nothing about it becomes a file that others could fetch."""
    try:
        data, width, height = _data(str(path), path.stat().st_mtime_ns, longest)
    except OSError:  # deleted, or not whole: its place stays empty
        return ""
    return f'<img src="{data}" alt="{text(alt)}" width="{width}" height="{height}">'


@lru_cache(maxsize=256)  # some tens of kilobytes each, a roll-out some hundreds
def _data(path: str, changed: int, longest: int) -> tuple[str, int, int]:
    """A data address, and the width and height, of a picture that is at most `longest` pixels long."""
    with Image.open(path, formats=["PNG", "WEBP"]) as opened:
        if opened.format == "WEBP" and max(opened.size) <= longest:  # as it is: encoding takes longest
            return _address(Path(path).read_bytes()), *opened.size
        picture = opened.convert("RGB")
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS, reducing_gap=2.0)
    content = BytesIO()
    picture.save(content, format="WEBP", quality=85, method=0)  # the fastest
    return _address(content.getvalue()), *picture.size


def _address(webp: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}"


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
