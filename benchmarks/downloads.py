"""Downloads that are killed at random moments, and how fast one is that nobody disturbs.

An imitation of the Hub on loopback serves repositories laid out like the real ones, with small random
weights, to the command line and the real huggingface_hub client.

    python -m benchmarks.downloads
"""

import argparse
import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.record import save_result
from tests.support.imitation_hub import ImitationHub
from tests.support.real_layout import save_qwen_vl_repository, save_z_image_repository

ROOT = Path(__file__).parent.parent
Z_IMAGE, QWEN = "Tongyi-MAI/Z-Image-Turbo", "Qwen/Qwen3-VL-4B-Instruct"
DOWNLOADS = 20
OF_CLIENT = re.compile(r"\.[0-9a-f]{8}\.incomplete$")
SPEED = 500_000  # bytes per second of each connection: slow enough to be killed in the middle of files
LARGE, LARGE_FILES = 256 << 20, 4  # bytes of a file, of the undisturbed download


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    with tempfile.TemporaryDirectory() as place, ImitationHub() as hub:
        folder = Path(place)
        save_z_image_repository(folder / "z-image")
        save_qwen_vl_repository(folder / "qwen")
        hub.add_model(Z_IMAGE, folder / "z-image")
        hub.add_model(QWEN, folder / "qwen")
        draw = random.Random(seed)
        rows = [killed_download(hub, folder, number, draw) for number in range(DOWNLOADS)]
        undisturbed = measure_speed(hub, folder)
    whole = sum(row["right"] for row in rows)
    print(f"{whole} of {DOWNLOADS} killed downloads are complete and right.")
    save_result("downloads", {"killed": rows, "right": whole, "undisturbed": undisturbed})


def killed_download(hub: ImitationHub, folder: Path, number: int, draw: random.Random) -> dict:
    """A download that is killed one to five times, and then left alone: whether all of it is right."""
    home = folder / f"home-{number}"
    hub.served.clear()
    hub.slow(r"\.safetensors$", SPEED)
    kills = []
    for _ in range(draw.randint(1, 5)):
        process = start(hub, home)
        kills.append(round(draw.uniform(0.3, 3.0), 2))
        time.sleep(kills[-1])
        process.send_signal(signal.SIGKILL)
        process.communicate()
    hub.mend()
    process = start(hub, home)
    output = process.communicate()[1]
    snapshots = list((home / "hub").glob("models--Tongyi*/snapshots/*"))
    files = [path for path in snapshots[0].rglob("*") if path.is_file()] if snapshots else []
    right = process.returncode == 0 and all(
        digest(path) == digest(folder / "z-image" / path.relative_to(snapshots[0])) for path in files
    )
    row = {
        "killed_after_seconds": kills,
        # The client's own beginnings of small files have names of their own.
        "right": right and all(OF_CLIENT.search(path.name) for path in home.rglob("*.incomplete")),
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "bytes_sent": hub.fetched(Z_IMAGE),
        "said": output.strip()[-300:] if process.returncode else "",
    }
    print(row, flush=True)
    return row


def start(hub: ImitationHub, home: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "dopsd_app", "download", "z-image-turbo"],
        env=environment(hub, home),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def environment(hub: ImitationHub, home: Path) -> dict[str, str]:
    ours = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return ours | hub.environment(home)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


OURS = """
from dopsd_app.models.download import fetch, whole_files
from dopsd_app.models.repository import list_files
def order():
    listing = list_files("Ann/large")
    return [whole_files(listing, "", list(listing.files))]
for step in fetch(order, "it"):
    pass
"""
THEIRS = "from huggingface_hub import snapshot_download; snapshot_download('Ann/large')"


def measure_speed(hub: ImitationHub, folder: Path) -> dict:
    """Seconds of our download, hashes and links included, and of the client's own over HTTP, by turns."""
    large = folder / "large"
    large.mkdir()
    for number in range(LARGE_FILES):
        with (large / f"{number}.safetensors").open("wb") as file:
            for _ in range(LARGE >> 20):
                file.write(os.urandom(1 << 20))
    hub.add_model("Ann/large", large)
    seconds = {"ours": [], "client": []}
    for turn in range(3):
        for way, code in (("ours", OURS), ("client", THEIRS)):
            home = folder / f"{way}-{turn}"
            begun = time.perf_counter()
            subprocess.run(
                [sys.executable, "-c", code],
                env=environment(hub, home),
                cwd=ROOT,
                check=True,
                capture_output=True,
            )
            seconds[way].append(round(time.perf_counter() - begun, 2))
    print(seconds, flush=True)
    return {"bytes": LARGE * LARGE_FILES, "seconds": seconds}


if __name__ == "__main__":
    main()
