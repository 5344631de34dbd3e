"""Changes to the captions of all pictures of a draft at once.

Each tool takes captions by picture key, as a draft holds them (one caption per line), and returns those that
it changed.
"""

import csv
import re
from collections.abc import Mapping
from io import StringIO
from pathlib import PureWindowsPath

from dopsd_app.data.caption_file import PLACEHOLDER, put_trigger_word
from dopsd_app.data.captions import holds
from dopsd_app.data.picture_file import fold_name
from dopsd_app.errors import KnownFailure

Captions = dict[str, str]


class CaptionToolError(KnownFailure):
    """Something that a tool cannot do."""


def fill_pattern(captions: Mapping[str, str], pattern: str, trigger_word: str) -> Captions:
    """The pattern as every caption, with the trigger word where it says [trigger]."""
    text = " ".join(pattern.split())
    if not text:
        raise CaptionToolError("The pattern is empty. Write one, such as: a photo of [trigger]")
    if PLACEHOLDER.search(text) and not trigger_word:
        raise CaptionToolError("There is no trigger word for [trigger]. Write it into its box above.")
    return _changed(captions, dict.fromkeys(captions, put_trigger_word(text, trigger_word)))


def put_trigger_first(captions: Mapping[str, str], trigger_word: str) -> Captions:
    """The trigger word, and a comma, before every caption that does not begin with it; empty ones stay."""
    if not trigger_word:
        raise CaptionToolError("There is no trigger word. Write it into its box above.")

    def first(line: str) -> str:
        begins = holds(line[: len(trigger_word) + 1], trigger_word) and line.startswith(trigger_word)
        return line if not line.strip() or begins else f"{trigger_word}, {line.strip()}"

    return _changed(captions, {key: _by_line(text, first) for key, text in captions.items()})


def replace_words(captions: Mapping[str, str], find: str, put: str) -> Captions:
    """Every `find` replaced, whatever its capitals; the spaces that are left over go."""
    if not find.strip():
        raise CaptionToolError("Write what is to be found.")
    pattern = re.compile(re.escape(find), re.IGNORECASE)

    def replaced(line: str) -> str:
        changed, number = pattern.subn(lambda _: put, line)
        return " ".join(changed.split()) if number else line

    return _changed(captions, {key: _by_line(text, replaced) for key, text in captions.items()})


def wrapped(captions: Mapping[str, str]) -> set[str]:
    """The keys of the captions that have several lines, each of which counts as a caption of its own."""
    return {key for key, text in captions.items() if len(_lines(text)) > 1}


def join_lines(captions: Mapping[str, str]) -> Captions:
    """One line of each caption that has several."""
    return {key: " ".join(_lines(captions[key])) for key in captions if key in wrapped(captions)}


def read_table(text: str, names: Mapping[str, str]) -> tuple[Captions, list[str]]:
    """Captions from lines of file name and caption, and the file names that are none of the pictures'.

    Between them stands a tab, as a spreadsheet copies it, or a comma or semicolon. `names` has the picture
    keys by file name, of which the ending may be left out.
    """
    keys = {fold_name(name): key for name, key in names.items()}
    keys |= {fold_name(PureWindowsPath(name).stem): key for name, key in names.items()}
    separator = next((mark for mark in "\t;," if mark in text), None)
    if separator is None:
        raise CaptionToolError("Paste lines of a file name, a tab or a comma, and the caption.")
    captions, unknown = {}, []
    for number, row in enumerate(csv.reader(StringIO(text), delimiter=separator)):
        name, rest = (row[0].strip(), row[1:]) if row else ("", [])
        key = keys.get(fold_name(PureWindowsPath(name).name)) or keys.get(
            fold_name(PureWindowsPath(name).stem)
        )
        # A caption may hold the commas that part it from its name; a tab or a semicolon it does not.
        caption = " ".join((", ".join(map(str.strip, rest)) if separator == "," else " ".join(rest)).split())
        if key and caption:
            captions[key] = caption
        elif name and not (number == 0 and fold_name(name) in ("file_name", "file", "name", "image")):
            unknown.append(name[:100])
    if not captions:
        raise CaptionToolError("No line of this table begins with the file name of a picture here.")
    return captions, unknown


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _by_line(text: str, change) -> str:
    return "\n".join(change(line) for line in text.splitlines())


def _changed(before: Mapping[str, str], after: Captions) -> Captions:
    return {key: text for key, text in after.items() if text != before[key]}
