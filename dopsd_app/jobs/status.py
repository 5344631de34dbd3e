"""How a job stands."""

from dataclasses import dataclass

from dopsd_app.progress import DownloadProgress

# States without a process behind them.
RESTING = ("draft", "queued", "stopped", "failed", "finished", "interrupted")


@dataclass(frozen=True)
class Status:
    """How a job stands, as status.json holds it."""

    state: str  # one of RESTING, or what its worker is just doing
    step: int = 0  # of a training: optimizer steps done; up to a fifth of a second old
    steps: int = 0
    done: int = 0  # of `total` things of this state; bytes of a download
    total: int = 0
    speed: float = 0.0  # of a download, in bytes per second
    pid: int | None = None  # the worker's, and when it started: a pid alone may be reused
    pid_started: float | None = None
    card: str = ""  # that its worker has, by its name among locks; "" where it was not told
    queue_number: int | None = None  # first in, first out
    reason: str = ""  # a sentence for the person: why it failed or was interrupted
    updated: float = 0.0  # seconds since 1970

    @property
    def live(self) -> bool:
        """Whether a process works on it."""
        return self.state not in RESTING

    @property
    def busy(self) -> bool:
        """Whether it is at work or waits for its turn."""
        return self.live or self.state == "queued"

    @property
    def download(self) -> DownloadProgress | None:
        """How far the base model has been fetched, while it is."""
        if self.state != "downloading":
            return None
        return DownloadProgress("downloading", self.done, self.total, self.speed)
