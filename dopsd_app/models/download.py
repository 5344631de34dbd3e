"""Fetching gigabytes from the Hub, which go on where they stopped.

The Hub's own client begins a file anew when its process was killed, so that the large files are fetched here:
over HTTP in ranges, into the client's cache and under the names that it would give them. It then links them,
and fetches the small ones.
"""

import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from filelock import FileLock, Timeout

from dopsd_app.files import free_disk, is_disk_full
from dopsd_app.hub_errors import HubError, reading_errors, reading_token
from dopsd_app.models.repository import Listing, RemoteFile, cache_folder, keep_revision, link_files
from dopsd_app.progress import DownloadProgress, words_for_disk

if TYPE_CHECKING:
    import httpx2

POLL_SECONDS = 0.5  # between two measurements of how far it is
SPEED_SECONDS = 10.0  # over which the speed is measured
AT_ONCE = 4  # files: one connection alone seldom fills a line
SILENCE_SECONDS = 15.0  # then a connection counts as broken off
WAITS = (1, 2, 4, 8, 15)  # seconds before another try; so many in a row without a byte, and it is given up
PIECE = 1 << 16  # bytes that are read and written at once
MARGIN = 200_000_000  # bytes that are left free on the disk
PARTIAL = ".incomplete"

A = TypeVar("A")
T = TypeVar("T")


class RangesRefusedError(HubError):
    """The server sends only whole files."""


class _Cancelled(Exception):
    """Nobody waits for this any more."""


def _persist(
    action: Callable[[], T],
    cancelled: threading.Event,
    waits: Sequence[float] | None = None,
    done: Callable[[], int] = lambda: 0,
) -> T:
    """Does again what a broken connection ended: while bytes come for ever, without any a few times."""
    waits = WAITS if waits is None else waits
    tries = 0
    while True:
        before = done()
        try:
            return action()
        except HubError as error:
            tries = 0 if done() > before else tries + 1
            if not error.transient or tries > len(waits):
                raise
            if cancelled.wait(error.wait or waits[max(0, tries - 1)]):
                raise _Cancelled from None


def in_threads(
    function: Callable[[A], T], items: Sequence[A], cancelled: threading.Event | None = None
) -> list[T]:
    """The function's results for all items, some at once; the first exception ends it.

    Its threads are not waited for, not even when the program ends: a silent server must hold up nobody.
    """
    waiting, results, failed = deque(enumerate(items)), {}, []

    def work() -> None:
        while not failed and not (cancelled and cancelled.is_set()):
            try:
                number, item = waiting.popleft()
            except IndexError:
                return
            try:
                results[number] = function(item)
            except BaseException as error:
                failed.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(AT_ONCE, len(items)))]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) and not failed:
        if cancelled and cancelled.is_set():
            raise _Cancelled
        time.sleep(0.02)
    if failed:
        raise failed[0]
    return [results[number] for number in range(len(items))]


@dataclass(frozen=True)
class Source:
    """Some bytes of a file on the Hub."""

    url: str
    start: int
    end: int  # the first byte that is not wanted


@dataclass(frozen=True)
class Target:
    """A file that is to be made of a few bytes of our own and of parts of files on the Hub."""

    path: Path
    lock: Path
    size: int
    sources: tuple[Source, ...]
    head: bytes = b""
    sha256: str = ""  # "": cannot be asked for, as for a part of a file
    whole: bool = True  # whether its source is a whole file, which may also come without ranges

    @property
    def partial(self) -> Path:
        return self.path.with_name(self.path.name + PARTIAL)

    @property
    def done(self) -> int:
        """Bytes that are here."""
        for path in (self.path, self.partial):
            with suppress(FileNotFoundError):
                return min(path.stat().st_size, self.size)
        return 0


@dataclass(frozen=True)
class Order:
    """What is to be fetched of one repository: large files here, then `finish` puts all into its place."""

    targets: tuple[Target, ...]
    finish: Callable[[], object] = lambda: None


def whole_files(listing: Listing, revision: str, files: Sequence[RemoteFile]) -> Order:
    """The order for files of a repository at the commit that was listed, into the Hub's cache."""

    def finish() -> None:
        link_files(listing.repository, listing.commit, [file.path for file in files])
        keep_revision(listing.repository, revision, listing.commit)

    return Order(tuple(_blob(listing, file) for file in files if file.sha256), finish)


def _blob(listing: Listing, file: RemoteFile) -> Target:
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.file_download import are_symlinks_supported

    cache, folder = Path(constants.HF_HUB_CACHE), cache_folder(listing.repository)
    path = folder / "blobs" / file.sha256
    # Asked of the client itself, though that lists no name for it: gigabytes that lie elsewhere than it
    # looks for them it would fetch again.
    if not path.exists() and not are_symlinks_supported(cache):
        # As the client does there: a link would be a second copy.
        path = folder / "snapshots" / listing.commit / file.path
    url = hf_hub_url(listing.repository, file.path, revision=listing.commit)
    lock = cache / ".locks" / folder.name / f"{file.sha256}.lock"  # the client's own: it keeps out of our way
    return Target(path, lock, file.size, (Source(url, 0, file.size),), sha256=file.sha256)


def fetch(order: Callable[[], Sequence[Order]], about: str) -> Generator[DownloadProgress]:
    """Fetches what `order()` asks the Hub for, and tells every half second how far it is; `about` names it.

    Closing it stops it. Raises `HubError` with one sentence; what came is kept, and the next call goes on.
    """
    work = _Work(order, about)
    threading.Thread(target=work.run, name="download", daemon=True).start()
    try:
        while not work.ended.wait(POLL_SECONDS):
            yield work.progress()
        if work.error:
            raise work.error
        yield work.progress()
    finally:
        work.cancelled.set()


class _Work:
    """One download, in threads that nobody waits for: a silent server must not hold up who cancels."""

    def __init__(self, order: Callable[[], Sequence[Order]], about: str):
        self.order, self.about = order, about
        self.targets: tuple[Target, ...] = ()
        self.cancelled, self.ended = threading.Event(), threading.Event()
        self.error: Exception | None = None
        self._history: deque[tuple[float, int]] = deque()  # (when, bytes that were here)

    def progress(self) -> DownloadProgress:
        """How far it is now."""
        history = self._history  # the other thread may begin a new one
        now, done = time.monotonic(), sum(target.done for target in self.targets)
        history.append((now, done))
        while now - history[0][0] > SPEED_SECONDS:
            history.popleft()
        before, had = history[0]
        speed = (done - had) / (now - before) if now > before else 0.0
        total = sum(target.size for target in self.targets)
        return DownloadProgress("downloading", done, total, max(0.0, round(speed)))

    def run(self) -> None:
        try:
            self._fetch_all(_persist(self.order, self.cancelled, WAITS[:1]))
        except _Cancelled:
            pass
        except Exception as error:  # the border: whoever waits raises it
            self.error = self._explained(error)
        finally:
            self.ended.set()

    def _fetch_all(self, orders: Sequence[Order]) -> None:
        targets = tuple(target for order in orders for target in order.targets)
        check_disk(targets, self.about)
        self.targets = targets
        self._history = deque()  # what was here before is no speed
        largest_first = sorted(targets, key=lambda target: -target.size)
        try:
            in_threads(lambda target: _fetch_file(target, self.cancelled), largest_first, self.cancelled)
        except BaseException:
            self.cancelled.set()  # the other files go on where they are, next time
            raise
        for order in orders:
            if self.cancelled.is_set():
                raise _Cancelled
            _persist(order.finish, self.cancelled, WAITS[:1])  # the client itself tries some times

    def _explained(self, error: Exception) -> Exception:
        """The error as one sentence; what is no fault of the Hub or the disk stays what it is."""
        progress = self.progress()
        far = f"{words_for_disk(progress.done)} of {words_for_disk(progress.total)} are here and are kept"
        if is_disk_full(error):
            return HubError(
                f"The disk is full: {far}. Free some space, then try again: it goes on from there."
            )
        if not isinstance(error, HubError) or not progress.total:
            return error
        hub_error = HubError(f"{error} Of {self.about}, {far}: the next try goes on from there.")
        hub_error.detail = error.detail
        return hub_error


def check_disk(targets: Sequence[Target], about: str) -> None:
    """Raises `HubError` where the disk cannot take what is still to come."""
    missing_on: dict[int, int] = {}  # by the number of the disk
    for folder, missing in missing_bytes(targets).items():
        there = next(place for place in (folder, *folder.parents) if place.exists())
        disk, free = there.stat().st_dev, free_disk(folder)
        missing = missing_on[disk] = missing_on.get(disk, 0) + missing
        if missing and missing + MARGIN > free:
            raise HubError(
                f"{about} needs {words_for_disk(missing)} more on the disk of {folder}, and"
                f" {words_for_disk(free)} are free. Free some space, or let the environment variable HF_HOME"
                " name a folder on another disk."
            )


def missing_bytes(targets: Sequence[Target]) -> dict[Path, int]:
    """Bytes that are still to come, by the cache's folder on whose disk they are to lie."""
    from huggingface_hub import constants

    missing: dict[Path, int] = {}
    for target in targets:
        hub = Path(constants.HF_HUB_CACHE)
        folder = hub if target.path.is_relative_to(hub) else Path(constants.HF_ASSETS_CACHE)
        missing[folder] = missing.get(folder, 0) + target.size - target.done
    return missing


# --- one file


def _fetch_file(target: Target, cancelled: threading.Event) -> None:
    target.path.parent.mkdir(parents=True, exist_ok=True)
    target.lock.parent.mkdir(parents=True, exist_ok=True)
    with _held(target.lock, cancelled):
        with suppress(FileNotFoundError):
            if target.path.stat().st_size == target.size:
                return
            os.replace(target.path, target.partial)  # cut off by a disk that was full, or by a hand
        with target.partial.open("a+b") as file:
            growing = _Growing(target, file, cancelled)
            _persist(growing.go_on, cancelled, done=lambda: target.done)
            growing.check()
        os.replace(target.partial, target.path)


@contextmanager
def _held(lock: Path, cancelled: threading.Event) -> Generator[None]:
    """The lock, however long another process fetches this file."""
    held = FileLock(lock, mode=0o664)
    while not cancelled.is_set():
        with suppress(Timeout):
            held.acquire(timeout=POLL_SECONDS)
            break
    else:
        raise _Cancelled
    try:
        yield
    finally:
        held.release()


class _Growing:
    """A partial file, with what an earlier process left of it, and the hash of what it holds."""

    def __init__(self, target: Target, file: BinaryIO, cancelled: threading.Event):
        self.target, self.file, self.cancelled = target, file, cancelled
        file.seek(0)
        begun = file.read(len(target.head)) == target.head and file.seek(0, os.SEEK_END) <= target.size
        if not begun:  # by another version, or of other tensors
            file.truncate(0)
            file.write(target.head)
        self.digest = hashlib.sha256()
        file.seek(0)
        while target.sha256 and (piece := file.read(PIECE << 4)):
            if cancelled.is_set():
                raise _Cancelled
            self.digest.update(piece)

    def go_on(self) -> None:
        """Brings the file to its whole size; a transient `HubError` where the connection broke off."""
        at = self.file.seek(0, os.SEEK_END) - len(self.target.head)
        for source in self.target.sources:
            length = source.end - source.start
            if at < length and self._append(source, at) < length - at:
                broken = HubError("The connection to the Hub broke off.")
                broken.transient = True
                raise broken
            at = max(0, at - length)

    def _append(self, source: Source, at: int) -> int:
        """Brings what a source has from `at` on; how many bytes of it came."""
        came = 0
        with open_range(source.url, source.start + at, source.end, any_answer=self.target.whole) as response:
            if response.status_code != 206:  # from the beginning, whatever the server was asked for
                self.file.truncate(0)
                self.digest, at = hashlib.sha256(), 0
            for piece in response.iter_bytes(PIECE):
                if self.cancelled.is_set():
                    raise _Cancelled
                piece = piece[: source.end - source.start - at - came]
                self.file.write(piece)
                self.digest.update(piece)
                came += len(piece)
            self.file.flush()
        return came

    def check(self) -> None:
        """Raises `HubError`, and throws the file away, where it does not hold what the Hub says."""
        self.file.flush()
        os.fsync(self.file.fileno())
        right = not self.target.sha256 or self.digest.hexdigest() == self.target.sha256
        if not right or self.file.tell() != self.target.size:
            self.file.truncate(0)
            name = self.target.sources[0].url.rpartition("/")[2]
            raise HubError(f"{name} came damaged from the Hub, and is thrown away.")


@contextmanager
def open_range(url: str, start: int, end: int, *, any_answer: bool = False) -> Generator["httpx2.Response"]:
    """The answer to a request for the bytes of a file on the Hub from `start` up to `end`.

    With `any_answer` it may be the whole file (status 200); else `RangesRefusedError` is raised.
    """
    from huggingface_hub import get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    headers = build_hf_headers(token=reading_token()) | {
        "Range": f"bytes={start}-{end - 1}",
        "Accept-Encoding": "identity",  # packed, a range would be one of other bytes
    }
    repository = "/".join(url.partition("/resolve/")[0].split("/")[-2:])
    with (
        reading_errors(repository),
        get_session().stream("GET", url, headers=headers, timeout=SILENCE_SECONDS) as response,
    ):
        if response.is_error:
            response.read()
        hf_raise_for_status(response)
        if response.status_code != 206 and not any_answer:
            raise RangesRefusedError("The Hub sends whole files only.")
        came = response.headers.get("Content-Range", "")
        if response.status_code == 206 and not came.startswith(f"bytes {start}-"):
            raise HubError(f"The Hub was asked for bytes from {start} on, and sent {came[:50] or 'others'}.")
        yield response
