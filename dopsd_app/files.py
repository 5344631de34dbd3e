"""Manners with files: replaced whole, tried again where a system refuses for a moment, room looked for."""

import errno
import functools
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from pydantic import TypeAdapter

T = TypeVar("T")
Value = TypeVar("Value", bound="DataclassInstance")


def replace_file(path: Path, content: str | bytes | Iterable[bytes | memoryview]) -> None:
    """Writes a whole file through a temporary name: a reader sees the old content or the new, never half.

    What is large may come in parts, which are never put together in memory.
    """
    if isinstance(content, str | bytes):
        content = [content.encode() if isinstance(content, str) else content]
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("wb") as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        retry(lambda: os.replace(temporary, path))
    finally:
        temporary.unlink(missing_ok=True)


def cut_name(name: str, most: int) -> str:
    """A part of a file's name in at most so many bytes: file systems take 255 for a whole one."""
    return name.encode()[:most].decode(errors="ignore")


def retry(action: Callable[[], T]) -> T:
    """Tries a file operation for up to two seconds: Windows refuses it while others have the file open."""
    for _ in range(100):
        try:
            return action()
        except PermissionError:
            if os.name != "nt":
                raise
            time.sleep(0.02)
    return action()


def find_renamed(path: Path, earlier: str) -> Path:
    """The file, or the one beside it that an earlier version wrote under another name, where that one is all.

    What is removed before it is written anew is then written under the new name.
    """
    before = path.with_name(earlier)
    return before if before.exists() and not path.exists() else path


def free_disk(folder: Path) -> int:
    """Bytes that can be written to a folder, which need not exist yet."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an exception, or one that it came from, says that nothing more can be written."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        # safetensors quotes the system; torch.save only finds that its file did not grow.
        if "(os error 28)" in str(error) or (
            "inline_container.cc" in str(error) and "unexpected pos" in str(error)
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


@functools.cache
def _adapter(kind: type) -> "TypeAdapter":
    from pydantic import TypeAdapter  # slow to import, and not every command reads such files

    return TypeAdapter(kind)


def read_value(kind: type[Value], content: bytes) -> Value:
    """The dataclass value that was kept as JSON; `ValueError` for whatever else `content` is.

    A file may come from another version, a bad disk or a hand: each field has its type, or nothing counts.
    """
    return make_value(kind, json.loads(content))


def make_value(kind: type[Value], plain: object) -> Value:
    """The dataclass value of what JSON was read into; `ValueError` for whatever else it is."""
    if not isinstance(plain, dict) or plain.keys() - {field.name for field in fields(kind)}:
        raise ValueError(f"This is no {kind.__name__} of this version.")
    return _adapter(kind).validate_json(json.dumps(plain), strict=True)
