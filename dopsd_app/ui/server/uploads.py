"""An upload as it comes in: whole, and of nothing but files, or none of it stays on the disk."""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gradio_client.utils import strip_invalid_filename_characters
from python_multipart.exceptions import FormParserError, MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.types import Message, Receive

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks


def whole_files(receive: Receive, content_type: str) -> Receive:
    """`receive` that fails over an upload which is cut off, or has a part that is no file in `files`.

    Gradio writes files as they come, and deletes them over one kind of failure only, while it reads. So what
    would fail later, or not at all, fails here and in that way. An HTTPException refuses all of it at once.
    """
    _, options = parse_options_header(content_type)
    if b"boundary" not in options:
        return receive  # Gradio refuses it before it reads
    try:
        parts = _Parts(options[b"boundary"])
    except FormParserError as error:  # over its length
        raise HTTPException(400, "The upload cannot be read.") from error

    async def checked() -> Message:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise MultiPartException("The upload was cut off.")
        parts.feed(message.get("body", b""))
        if not message.get("more_body", False) and not parts.ended:
            raise MultiPartException("The upload has no end.")
        return message

    return checked


@contextmanager
def removed_afterwards(files: Iterable[str | Path]) -> Generator[None]:
    """Removes the server's copies of uploads after use: they would stay where browsers can fetch them."""
    try:
        yield
    finally:
        for file in files:
            Path(file).unlink(missing_ok=True)


class _Parts:
    """The heads of a multipart body's parts."""

    def __init__(self, boundary: bytes):
        self.ended = False
        self._name, self._value, self._disposition = b"", b"", b""
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._begin,
            "on_header_field": self._add_to_name,
            "on_header_value": self._add_to_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._check,
            "on_end": self._end,
        }
        self._parser = MultipartParser(boundary, callbacks)

    def feed(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except MultipartParseError as error:
            raise MultiPartException("The upload cannot be read.") from error

    def _begin(self) -> None:
        self._name, self._value, self._disposition = b"", b"", b""

    def _add_to_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name, self._value = b"", b""

    def _check(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"filename")
        if options.get(b"name") != b"files" or name is None:
            raise MultiPartException("An upload has files only, each in a field `files`.")
        # As Gradio makes the file's name: one that is left empty would be the folder's own.
        own = Path(name.decode(errors="replace")).name
        if name and strip_invalid_filename_characters(own) in ("", ".", ".."):
            raise MultiPartException("A file needs a name.")

    def _end(self) -> None:
        self.ended = True
