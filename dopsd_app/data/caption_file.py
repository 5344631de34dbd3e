"""Captions as people keep them in files: lines of text, and tables such as metadata.jsonl of `datasets`."""

import csv
import json
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dopsd_app.data.picture_file import shown

MAX_CAPTION = 2_000  # characters; text encoders read some 500 tokens and cut off the rest unseen
MAX_TEXT_BYTES = 1_000_000  # of a caption file, and of a table
CAPTION_SUFFIXES = (".txt", ".caption", ".json")  # of a file beside a picture; the first that is there counts
TABLES = ("metadata.jsonl", "metadata.json", "metadata.csv")  # likewise
NAME_COLUMNS = ("file_name", "image", "file")  # of a table; the first one that is there counts
CAPTION_COLUMNS = ("text", "caption", "prompt")  # likewise, and of the .json beside a picture
SURPLUS = object()  # names the cells of a line of a .csv that no column has
# The pictures to start from; `datasets` reads the last two as columns of pictures. A name, or a list of them.
SOURCE_COLUMNS = ("source", "sources", "source_file_name", "source_file_names")
PICTURE_SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".webp",
    ".avif",
    ".heic",
    ".heif",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
)
# How text is written that is not UTF-8, by system and country. Of central Europe's there is none: in a line
# or two it cannot be told from the west's, which is far more frequent.
_ENCODINGS = {
    "cp1252": "Windows-1252",
    "cp932": "Shift-JIS",
    "gb18030": "GB 18030",
    "big5": "Big5",
    "cp949": "EUC-KR",
    "euc_jp": "EUC-JP",
    "cp1251": "Windows-1251",
}
PLACEHOLDER = re.compile(r"\[(?:trigger|trigger[ _]?word|name)\]", re.IGNORECASE)  # of the trigger word


@dataclass(frozen=True)
class Text:
    """What a file holds, and how it was written where that was not UTF-8."""

    text: str
    encoding: str = ""  # for people

    @property
    def remark(self) -> str:
        """The rest of a sentence that begins with the file's name; "" where there is nothing to say."""
        return f"was read as {self.encoding}: look whether its letters are right." if self.encoding else ""


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    file_name: str
    texts: list  # captions, not checked yet
    sources: list[str]  # file names of the pictures to start from


def caption_stem(file_name: str) -> str:
    """The name, without its ending, of the picture that a caption file belongs to: 1.txt, 1.png.txt."""
    path = PurePosixPath(PurePosixPath(file_name.replace("\\", "/")).name)
    inner = PurePosixPath(path.stem)
    named = path.suffix.lower() in CAPTION_SUFFIXES and inner.suffix.lower() in PICTURE_SUFFIXES
    return inner.stem if named else path.stem


def named_picture(file_name: str) -> str:
    """The whole file name of the picture, with folders, that 1.png.txt or the 1.png of a table is of.

    "" where only the name without its ending is told.
    """
    path = PurePosixPath(file_name.replace("\\", "/"))
    if path.suffix.lower() in CAPTION_SUFFIXES:
        path = path.with_suffix("")
    return path.as_posix() if path.suffix.lower() in PICTURE_SUFFIXES else ""


def read_caption_file(path: Path) -> tuple[list, Text] | None:
    """The captions of a file beside a picture, not checked yet; None for a .json that holds none.

    Raises ValueError for a file that cannot be read.
    """
    text = read_text(path)
    if path.suffix.lower() != ".json":
        return text.text.splitlines(), text
    try:
        content = json.loads(text.text)
    except (json.JSONDecodeError, RecursionError):
        return None
    if isinstance(content, dict):
        content = next((content[column] for column in CAPTION_COLUMNS if column in content), None)
    texts = content if isinstance(content, list) else [content]
    return (texts, text) if texts and all(isinstance(caption, str) for caption in texts) else None


def parse_table(path: Path) -> tuple[dict[int, object], list[int]]:
    """The rows of one of `TABLES` by their numbers, and the numbers of the lines that are not JSON."""
    text = read_text(path).text
    if path.suffix.lower() == ".csv":
        return _parse_csv(text), []
    if path.suffix.lower() == ".json" or text.lstrip().startswith("["):
        return _parse_array(text)
    rows, broken = {}, []
    for number, line in enumerate(text.split("\n"), start=1):  # JSON may hold other line breaks
        if not line.strip():
            continue
        try:
            rows[number] = json.loads(line, parse_int=float)  # int would refuse 5,000 digits
        except (json.JSONDecodeError, RecursionError):
            broken.append(number)
    return rows, broken


def _parse_array(text: str) -> tuple[dict[int, object], list[int]]:
    """A JSON list of rows, or an object of captions by file name."""
    try:
        content = json.loads(text, parse_int=float)
    except (json.JSONDecodeError, RecursionError):
        return {}, [1]
    if isinstance(content, dict):
        named = content.items()
        content = [
            {NAME_COLUMNS[0]: name, **(row if isinstance(row, dict) else {"text": row})}
            for name, row in named
        ]
    return dict(enumerate(content, start=1)) if isinstance(content, list) else {}, []


def _parse_csv(text: str) -> dict[int, object]:
    """The lines below the names of the columns, which are parted by commas, semicolons or tabs."""
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.DictReader(text.splitlines(keepends=True), delimiter=delimiter)
    try:
        rows = [_joined(row, delimiter) for row in reader]
    except csv.Error as error:
        raise ValueError("metadata.csv is not a table. Write file_name,text in its first line.") from error
    return dict(enumerate(rows, start=2))  # below the names of the columns


def _joined(row: dict, delimiter: str) -> dict:
    """A line of a .csv with the cells beyond its columns in the last one: a caption may hold what parts them.

    Where that is no caption they stand under `SURPLUS`.
    """
    surplus = row.pop(None, [])
    named = {(name or "").strip(): value for name, value in row.items()}
    last = next(reversed(named), "")
    if not any(map(str.strip, surplus)):
        return named
    if last in CAPTION_COLUMNS:
        return named | {last: delimiter.join([named[last], *surplus])}
    return named | {SURPLUS: surplus}


def parse_row(row: object) -> Row:
    """One line, read; or a ValueError that completes "Line 3 of metadata.jsonl"."""
    names = [row[column] for column in NAME_COLUMNS if column in row] if isinstance(row, dict) else []
    if not isinstance(row, dict) or not names or not isinstance(names[0], str):
        raise ValueError('names no picture. Give its file name as "file_name".')
    if SURPLUS in row:
        raise ValueError("has more cells than columns. Put the caption in double quotes.")
    texts = next((row[column] for column in CAPTION_COLUMNS if column in row), None)
    sources = next((row[column] for column in SOURCE_COLUMNS if row.get(column)), [])
    sources = sources if isinstance(sources, list) else [sources]
    if not all(isinstance(source, str) for source in sources):
        raise ValueError("names a source picture that is no text. Give file names.")
    return Row(names[0], texts if isinstance(texts, list) else [texts], sources)


def read_text(path: Path) -> Text:
    """The text of a small file, in whatever way it was written; ValueError for what is none."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{shown(path.name)} cannot be opened. Check that you may read it.") from error
    if len(content) > MAX_TEXT_BYTES:
        raise ValueError(f"{shown(path.name)} is larger than a megabyte. Keep only captions in it.")
    text = _decode(content)
    if text is None:
        raise ValueError(f"{shown(path.name)} is no text that can be read. Save it as plain text in UTF-8.")
    return text


def _decode(content: bytes) -> Text | None:
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return _decoded(content, "utf-16", "UTF-16")
    if b"\0" in content:  # UTF-16 without its mark: of Latin letters, every other byte is 0
        order = "be" if content[:1] == b"\0" else "le"
        return _decoded(content, f"utf-16-{order}", "UTF-16") if content[:8].count(0) >= 3 else None
    try:
        return Text(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        if _is_western(content):
            return Text(content.decode("cp1252"), _ENCODINGS["cp1252"])
        from charset_normalizer import from_bytes  # slow to import, and hardly ever needed

        best = from_bytes(content, cp_isolation=list(_ENCODINGS)).best()
        return Text(str(best), _ENCODINGS[best.encoding]) if best else None


def _is_western(content: bytes) -> bool:
    """Whether a few accents, quotes and dashes stand between plain letters: too few for statistics."""
    try:
        foreign = [character for character in content.decode("cp1252") if ord(character) > 127]
    except UnicodeDecodeError:
        return False
    kinds = {unicodedata.category(character) for character in foreign}
    return kinds <= {"Ll", "Lu", "Pi", "Pf", "Pd"} and 3 * len(foreign) <= len(content)


def _decoded(content: bytes, encoding: str, name: str) -> Text | None:
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else Text(text, name)


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


def put_trigger_word(caption: str, trigger_word: str) -> str:
    """The caption with the trigger word for `[trigger]` and `[name]`, as other trainers have them."""
    return PLACEHOLDER.sub(lambda _: trigger_word, caption)


def plain_line(text: str) -> str:
    """The text as one line, without control characters and broken Unicode."""
    plain = "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)
    return " ".join(plain.split())
