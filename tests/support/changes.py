"""What has changed since the last commit of main."""

import subprocess
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]


def changed_since_main(*paths: str, repository: Path = ROOT) -> bool:
    """Whether any of these differs from main's last commit, or on main itself from the one before it.

    True as well where that cannot be known: without git, without main, or where only one commit was fetched.
    """

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout

    def commit(name: str) -> str:
        return git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")

    try:
        main = ""
        for name in ("main", "origin/main"):
            with suppress(subprocess.CalledProcessError):
                main = commit(name)
        base = commit("HEAD^") if main == commit("HEAD") else main
        changed = git("diff", "--name-only", base.strip(), "--", *paths)
        return bool(changed or git("ls-files", "--others", "--exclude-standard", "--", *paths))
    except (OSError, subprocess.CalledProcessError):
        return True
