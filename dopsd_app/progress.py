"""How far something is that takes long, and how that is written."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PhaseProgress:
    """A phase before training moves on, or a push to the Hub: `done` of `total` things."""

    phase: str  # "downloading", "loading", "encoding" or "publishing"
    done: int
    total: int


@dataclass(frozen=True)
class DownloadProgress(PhaseProgress):
    """How far the base model has been fetched, in bytes; `total` is 0 until the Hub has answered."""

    speed: float = 0.0  # bytes per second of the last seconds; 0 where nothing comes

    @property
    def seconds_left(self) -> float | None:
        """Time to the end at this speed; None while it is unknown."""
        return (self.total - self.done) / self.speed if self.speed and self.total else None


def words_for_download(progress: DownloadProgress) -> str:
    """How far a download is, how fast, and how long it still takes."""
    if not progress.total:
        return "Asking the Hub what it has"
    if progress.done >= progress.total:
        return f"All {words_for_disk(progress.total)} are here: putting the files into their places"
    fetched = f"{words_for_disk(progress.done)} of {words_for_disk(progress.total)} fetched"
    if progress.seconds_left is None:
        return f"{fetched}, waiting for more"
    return f"{fetched}, {progress.speed / 1e6:.1f} MB/s, {words_for_time(progress.seconds_left)} left"


def words_for_count(number: int, thing: str) -> str:
    """So many things of one name: 1 picture, 2 pictures."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def words_for_time(seconds: float) -> str:
    """A time as a person would say it."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 90:
        return f"about {seconds:.0f} s"
    if seconds < 90 * 60:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.0f} hours" if seconds < 48 * 3600 else f"about {seconds / 86400:.0f} days"


def words_for_disk(number_of_bytes: float) -> str:
    """An amount of disk: 850 MB, 3.2 GB."""
    gigabytes = number_of_bytes / 1e9
    return f"{gigabytes:.1f} GB" if gigabytes >= 1 else f"{max(1, round(gigabytes * 1000))} MB"
