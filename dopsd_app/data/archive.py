"""A zip file that somebody sends: unpacked into a folder, file by file, and never more than is allowed."""

import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from dopsd_app.data.folder import is_ignored
from dopsd_app.data.picture_file import shown

MAX_ENTRIES = 5_000
MAX_UNPACKED = 2_000_000_000  # bytes of all files together
BLOCK = 1 << 20
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, ValueError)


def is_zip(path: Path) -> bool:
    """Whether a file is one, by its content; a document of an office program is one too."""
    return path.suffix.lower() == ".zip" and zipfile.is_zipfile(path)


def unpack(path: Path, folder: Path, most: int) -> list[str]:
    """Unpacks a zip into an empty folder; returns what is said of files that were left out.

    `most` is the bytes of one file. What the zip says of sizes counts for nothing: bytes are counted. Links,
    files of the system, and names that lead out of the folder are left out.
    """
    name = shown(path.name)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if len(entries) > MAX_ENTRIES:
                return [f"{name} holds more than {MAX_ENTRIES} files. Send only the pictures and captions."]
            return _unpack(archive, entries, folder, most, name)
    except DAMAGED as error:
        if isinstance(error, RuntimeError) and "password" in str(error):
            return [f"{name} is locked with a password. Pack it without one."]
        return [f"{name} is damaged or packed in an unusual way. Pack it again as a plain zip."]


def _unpack(
    archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], folder: Path, most: int, name: str
) -> list[str]:
    said, left = [], MAX_UNPACKED
    for entry in entries:
        inside = PurePosixPath(_name_of(entry).replace("\\", "/"))
        if inside.is_absolute() or ".." in inside.parts or ":" in str(inside) or "\0" in str(inside):
            said.append(f"{shown(str(inside))} in {name} was left out: its name leads out of the zip.")
            continue
        if entry.is_dir() or any(is_ignored(part) for part in inside.parts if part != "prompts.txt"):
            continue
        if stat.S_ISLNK(entry.external_attr >> 16):
            said.append(f"{shown(str(inside))} in {name} was left out: it is a link.")
            continue
        target = folder / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(entry) as source, target.open("wb") as file:
            size = 0
            while size <= most and (block := source.read(min(BLOCK, most + 1 - size))):
                size += len(block)
                file.write(block)
        left -= size
        if left < 0:
            target.unlink()
            return [f"{name} holds more than {MAX_UNPACKED // 10**9} GB. Send fewer pictures at once.", *said]
        if size > most:
            target.unlink()
            said.append(f"{shown(str(inside))} in {name} is larger than {most // 10**6} MB. Scale it down.")
    return said


def _name_of(entry: zipfile.ZipInfo) -> str:
    """The name of a file in a zip; many programs write UTF-8 without saying so."""
    if entry.flag_bits & 0x800:
        return entry.filename
    try:
        return entry.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return entry.filename
