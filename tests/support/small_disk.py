"""A disk that is soon full."""

import contextlib
import subprocess

import pytest


def on_a_small_disk(folder):
    """A command prefix that runs the rest with a real disk of 2 MB mounted on the folder, for it alone."""
    mount = ["sh", "-c", f"mount -t tmpfs -o size=2m none '{folder}' && exec \"$@\"", "sh"]
    for prefix in (["unshare", "-Urm"], ["unshare", "-m"], ["sudo", "-n", "unshare", "-m"]):
        with contextlib.suppress(FileNotFoundError):
            if subprocess.run([*prefix, *mount, "true"], capture_output=True).returncode == 0:
                return [*prefix, *mount]
    pytest.skip("no right to mount a small disk")
