"""How much memory the server keeps of strangers' visits to a Space.

python -m benchmarks.visits
"""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from benchmarks.record import save_result

ROOT = Path(__file__).parent.parent
VISITS, EVERY = 300, 50
FOREIGN = ("HF_", "SPACE", "OAUTH_", "OPENID_", "DOPSD_", "GRADIO_", "SYSTEM")
# A Space without sign-in: nobody who asks is its owner, and the Hub is not asked.
SPACE = {"SYSTEM": "spaces", "SPACE_ID": "someone/trainer", "SPACE_AUTHOR_NAME": "someone"}


def main() -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, _served(Path(folder)) as process:
        port = process.environ()["GRADIO_SERVER_PORT"]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
            megabytes = measure_visits(http, process)
    grown = megabytes[-1] - megabytes[0]
    result = {
        "visits": VISITS,
        "each": "the page, its description, and the event that fills it, in a session of its own",
        "megabytes_after_the_first": megabytes[0],
        f"megabytes_every_{EVERY}": megabytes[1:],
        "kilobytes_a_visit": round(1000 * grown / VISITS),
    }
    print(f"Saved {save_result('visits', result).name}: {result}")


def measure_visits(http: httpx.Client, process: psutil.Process) -> list[float]:
    """Megabytes in the computer's memory after the first visit, then after every EVERY more."""
    config = http.get("/config").json()
    entrance = max(
        (d for d in config["dependencies"] if d["targets"] and d["targets"][0][1] == "load"),
        key=lambda dependency: len(dependency["outputs"]),
    )
    megabytes = []
    for number in range(VISITS + 1):
        _visit(http, entrance["id"])
        if number % EVERY == 0:
            megabytes.append(round(process.memory_info().rss / 1e6, 1))
    return megabytes


def _visit(http: httpx.Client, entrance: int) -> None:
    session = secrets.token_hex(5)
    for path in ("/", "/config"):
        http.get(path).raise_for_status()
    body = {"data": [{}], "fn_index": entrance, "session_hash": session}
    http.post("/gradio_api/queue/join", json=body).raise_for_status()
    stream = http.get("/gradio_api/queue/data", params={"session_hash": session})  # ends with the event
    assert "duplicate=true" in stream.text, stream.text  # the welcome


@contextmanager
def _served(folder: Path) -> Iterator[psutil.Process]:
    """`python app.py` as a Space, in an empty folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    environment = (
        own | SPACE | {"GRADIO_SERVER_PORT": str(port), "TMPDIR": str(folder), "HF_HOME": str(folder)}
    )
    environment["GRADIO_ANALYTICS_ENABLED"] = "False"
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "app.py")], cwd=folder, env=environment, stdout=subprocess.DEVNULL
    )
    try:
        _wait_for(f"http://127.0.0.1:{port}/config")
        yield psutil.Process(server.pid)
    finally:
        server.terminate()
        server.wait()


def _wait_for(address: str) -> None:
    for _ in range(600):
        try:
            httpx.get(address, trust_env=False).raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise RuntimeError(f"{address} does not answer.")


if __name__ == "__main__":
    main()
