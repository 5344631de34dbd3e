"""A zip file that somebody sends: unpacked into a folder, file by file, and never more than is allowed."""

import errno
import stat
import zipfile
import zlib
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

from dopsd_app.data.folder import is_ignored
from dopsd_app.data.picture_file import shown

MAX_ENTRIES = 5_000
MAX_UNPACKED = 2_000_000_000  # bytes of all files together
# Of names that are too long, hold signs that no file may have here, or are those of a folder that is there.
UNNAMEABLE = (errno.ENAMETOOLONG, errno.EINVAL, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
BLOCK = 1 << 20
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, ValueError)


def is_zip(path: Path) -> bool:
    """Whether a file is one, by its content; a document of an office program is one too."""
    return path.suffix.lower() == ".zip" and zipfile.is_zipfile(path)


def unpack(path: Path, folder: Path, most: int) -> list[str]:
    """Unpacks a zip into an empty folder; returns what is said of files that were left out.

    `most` is the bytes of one file. What the zip says of sizes counts for nothing: bytes are counted. Links,
    files of the system, names that lead out of the folder, and names that no file can have are left out.
    Raises OSError where the disk does not take a file.
    """
    name = shown(path.name)
    try:
        with _reading():
            archive = zipfile.ZipFile(path)
        with archive:
            entries = archive.infolist()
            if len(entries) > MAX_ENTRIES:
                return [f"{name} holds more than {MAX_ENTRIES} files. Send only the pictures and captions."]
            return _unpack(archive, entries, folder, most, name)
    except _DamagedError as error:
        cause = error.__cause__
        if isinstance(cause, RuntimeError) and "password" in str(cause):
            return [f"{name} is locked with a password. Pack it without one."]
        return [f"{name} is damaged or packed in an unusual way. Pack it again as a plain zip."]


class _DamagedError(Exception):
    """The zip itself cannot be read, whatever the disk does."""


@contextmanager
def _reading() -> Generator[None]:
    try:
        yield
    except DAMAGED as error:
        raise _DamagedError from error


def _unpack(
    archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], folder: Path, most: int, name: str
) -> list[str]:
    said, left = [], MAX_UNPACKED
    for entry in entries:
        inside = PurePosixPath(_name_of(entry).replace("\\", "/"))
        if entry.is_dir() or any(map(is_ignored, set(inside.parts) - {"prompts.txt", ".."})):
            continue
        if why := _why_not(entry, inside):
            said.append(f"{shown(str(inside))} in {name} was left out: {why}")
            continue
        target = folder / inside
        try:
            size = _write(archive, entry, target, most)
        except OSError as error:
            if error.errno not in UNNAMEABLE:
                raise
            said.append(f"{shown(str(inside))} in {name} was left out: no file can have its name. Rename it.")
            continue
        left -= size
        if left < 0:
            target.unlink()
            return [f"{name} holds more than {MAX_UNPACKED // 10**9} GB. Send fewer pictures at once.", *said]
        if size > most:
            target.unlink()
            said.append(f"{shown(str(inside))} in {name} is larger than {most // 10**6} MB. Scale it down.")
    return said


def _why_not(entry: zipfile.ZipInfo, inside: PurePosixPath) -> str:
    """Why an entry of this name is left out; "" where it is not."""
    drive = PureWindowsPath(str(inside)).drive
    if inside.is_absolute() or drive or ".." in inside.parts or "\0" in str(inside):
        return "its name leads out of the zip."
    if ":" in str(inside):  # on Windows it would become a hidden part of another file
        return "its name holds “:”, which not every system can keep. Rename it."
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "it is a link."
    return ""


def _write(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, most: int) -> int:
    """Writes one entry, up to one byte more than `most`, and returns the bytes written."""
    target.parent.mkdir(parents=True, exist_ok=True)
    size = 0
    with ExitStack() as stack:
        with _reading():
            source = stack.enter_context(archive.open(entry))
        file = stack.enter_context(target.open("wb"))
        while size <= most:
            with _reading():
                block = source.read(min(BLOCK, most + 1 - size))
            if not block:
                break
            size += len(block)
            file.write(block)
    return size


def _name_of(entry: zipfile.ZipInfo) -> str:
    """The name of a file in a zip; many programs write UTF-8 without saying so."""
    if entry.flag_bits & 0x800:
        return entry.filename
    try:
        return entry.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return entry.filename
