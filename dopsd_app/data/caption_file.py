"""Captions as people keep them in files: lines of text, or metadata.jsonl as `datasets` writes it."""

import json
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from dopsd_app.data.picture_file import shown

MAX_CAPTION = 2_000  # characters; text encoders read some 500 tokens and cut off the rest unseen
MAX_TEXT_BYTES = 1_000_000  # of a caption file, and of metadata.jsonl
CAPTION_COLUMNS = ("text", "caption", "prompt")  # of metadata.jsonl; the first one that is there counts
# The pictures to start from; `datasets` reads the last two as columns of pictures. A name, or a list of them.
SOURCE_COLUMNS = ("source", "sources", "source_file_name", "source_file_names")


@dataclass(frozen=True)
class Row:
    """One line of metadata.jsonl."""

    file_name: str
    texts: list  # captions, not checked yet
    sources: list[str]  # file names of the pictures to start from


def parse_metadata(path: Path) -> tuple[dict[int, object], list[int]]:
    """The rows by line number, and the numbers of the lines that are not JSON."""
    rows, broken = {}, []
    for number, line in enumerate(read_text(path).split("\n"), start=1):  # JSON may hold other line breaks
        if not line.strip():
            continue
        try:
            rows[number] = json.loads(line, parse_int=float)  # int would refuse 5,000 digits
        except (json.JSONDecodeError, RecursionError):
            broken.append(number)
    return rows, broken


def parse_row(row: object) -> Row:
    """One line, read; or a ValueError that completes "Line 3 of metadata.jsonl"."""
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
        raise ValueError('names no picture. Give its file name as "file_name".')
    texts = next((row[column] for column in CAPTION_COLUMNS if column in row), None)
    sources = next((row[column] for column in SOURCE_COLUMNS if row.get(column) is not None), [])
    sources = sources if isinstance(sources, list) else [sources]
    if not all(isinstance(source, str) for source in sources):
        raise ValueError("names a source picture that is no text. Give file names.")
    return Row(row["file_name"], texts if isinstance(texts, list) else [texts], sources)


def read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{shown(path.name)} cannot be opened. Check that you may read it.") from error
    if len(content) > MAX_TEXT_BYTES:
        raise ValueError(f"{shown(path.name)} is larger than a megabyte. Keep only captions in it.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # as in UTF-16, which can be valid UTF-8
        raise ValueError(f"{shown(path.name)} is not UTF-8 text. Save it as plain text in UTF-8.")
    return text


def clean_captions(texts: list, name: str) -> tuple[str, ...]:
    """One line per caption, without control characters and broken Unicode; empty lines are passed over."""
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"The caption of {name} is missing or is not text. Write what the picture shows.")
    captions = tuple(caption for caption in map(plain_line, texts) if caption)
    if not captions:
        raise ValueError(f"The caption of {name} is empty. Write what the picture shows.")
    longest = max(map(len, captions))
    if longest > MAX_CAPTION:
        raise ValueError(
            f"The caption of {name} has {longest} characters. Shorten it to {MAX_CAPTION} at most."
        )
    return captions


def plain_line(text: str) -> str:
    """The text as one line, without control characters and broken Unicode."""
    plain = "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)
    return " ".join(plain.split())
