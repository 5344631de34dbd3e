"""A process with the real client of the Hub, beside the tests' own, which is offline."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Downloader:
    """A process with the real client; each test has a cache of its own."""

    def __init__(self, hub, folder, **environment):
        ours = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "SPACE"))}
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/support/download_process.py")],
            env=ours | hub.environment(folder) | {"PYTHONPATH": str(ROOT)} | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def __call__(self, home, name, *arguments, **keywords):
        named = dict(zip(("name", "revision"), arguments, strict=False)) | keywords
        line = {"home": str(home), "name": name, "arguments": named}
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["error"] if "error" in answer else answer["result"]
