"""Changes to the captions of all pictures of a draft at once.

Each tool takes captions by picture key, as a draft holds them (one caption per line), and returns those that
it changed.
"""

import csv
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from io import StringIO
from pathlib import PureWindowsPath

from dopsd_app.data.caption_file import PLACEHOLDER, put_trigger_word
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
    """The trigger word, and a comma, before every caption that does not begin with it; empty ones stay.

    One that begins with [trigger], or with the word in other capitals, begins with it: it is spelled right.
    """
    if not trigger_word:
        raise CaptionToolError("There is no trigger word. Write it into its box above.")

    word = re.compile(rf"{PLACEHOLDER.pattern}|{re.escape(trigger_word)}", re.IGNORECASE)

    def first(line: str) -> str:
        caption = line.strip()
        if not caption or caption == trigger_word:
            return line
        if not (found := word.match(caption)) or not _is_whole(caption, *found.span()):
            return f"{trigger_word}, {caption}"
        return line if found[0] == trigger_word else trigger_word + caption[found.end() :]

    return _changed(captions, {key: _by_line(text, first) for key, text in captions.items()})


def replace_words(captions: Mapping[str, str], find: str, put: str) -> Captions:
    """Every `find` that is no part of a word replaced, whatever its capitals; the spaces left over go."""
    if not find.strip():
        raise CaptionToolError("Write what is to be found.")
    pattern = re.compile(re.escape(find), re.IGNORECASE)

    def replaced(line: str) -> str:
        changed = pattern.sub(lambda found: put if _is_whole(line, *found.span()) else found[0], line)
        return " ".join(changed.split()) if changed != line else line

    return _changed(captions, {key: _by_line(text, replaced) for key, text in captions.items()})


def _is_whole(text: str, start: int, end: int) -> bool:
    """Whether this part of a text is no part of a longer word, as `holds` has it."""

    def joined(*pair: str) -> bool:
        if not all(character.isalnum() for character in pair):  # isalnum() of "" is False
            return False
        return not any(unicodedata.category(character) == "Lo" for character in pair)

    return not joined(text[start - 1 : start], text[start]) and not joined(text[end - 1], text[end : end + 1])


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
    key_of = _finder(names)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    readings = [(mark, rows) for mark in "\t;," if mark in text for rows in _readings(text, mark)]
    if not readings:
        raise CaptionToolError("Paste lines of a file name, a tab or a comma, and the caption.")
    separator, rows = max(readings, key=lambda reading: sum(bool(key_of(row[0])) for row in reading[1]))
    captions, unknown = {}, []
    for number, row in enumerate(rows):
        name, rest = row[0].strip(), row[1:]
        key = key_of(name)
        # A caption may hold the commas that part it from its name; a tab or a semicolon it does not.
        caption = " ".join((", ".join(map(str.strip, rest)) if separator == "," else " ".join(rest)).split())
        if key and caption:
            captions[key] = caption
        elif name and not (number == 0 and fold_name(name) in ("file_name", "file", "name", "image")):
            unknown.append(name[:100])
    if not captions:
        raise CaptionToolError("No line of this table begins with the file name of a picture here.")
    return captions, unknown


def _finder(names: Mapping[str, str]) -> Callable[[str], str | None]:
    """What gives the picture's key for the name in a table; of names alike but for the ending, no stem."""
    keys = {fold_name(name): key for name, key in names.items()}
    stems = Counter(fold_name(PureWindowsPath(name).stem) for name in names)
    by_stem = {fold_name(PureWindowsPath(name).stem): key for name, key in names.items()}
    by_stem = {stem: key for stem, key in by_stem.items() if stems[stem] == 1}

    def key_of(cell: str) -> str | None:
        path = PureWindowsPath(cell.strip())
        whole, bare = fold_name(path.name), fold_name(path.stem)
        return keys.get(whole) or by_stem.get(whole) or by_stem.get(bare)

    return key_of


def _readings(text: str, separator: str) -> Iterator[list[list[str]]]:
    """The rows of a table: with cells of several lines in quotes, and line by line, where quotes are free."""
    try:
        if text.count('"') % 2 == 0:
            yield [row for row in csv.reader(StringIO(text), delimiter=separator) if row]
        rows = []
        for line in text.split("\n"):
            quoting = csv.QUOTE_NONE if line.count('"') % 2 else csv.QUOTE_MINIMAL
            rows += [row for row in csv.reader([line], delimiter=separator, quoting=quoting) if row]
        yield rows
    except csv.Error as error:
        raise CaptionToolError("This is no table that can be read: a cell of it is too long.") from error


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _by_line(text: str, change) -> str:
    return "\n".join(change(line) for line in text.splitlines())


def _changed(before: Mapping[str, str], after: Captions) -> Captions:
    return {key: text for key, text in after.items() if text != before[key]}
