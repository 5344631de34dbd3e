"""What a checkpoint's folder holds, and whether it is what was written: its manifest, the last file in it."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from dopsd_app.files import replace_file
from dopsd_app.schema import stamp

MANIFEST = "manifest.json"
CHECKPOINT_LORA = "lora.safetensors"  # the LoRA as a person can use it
RESUME_FILE = "resume.pt"  # what training needs besides: of the newest checkpoints only
SCHEMA = 2  # 1 held `student.safetensors`, `teacher.safetensors` and `optimizer.pt`, and no hashes
RESUMABLE = 2  # newest checkpoints that are kept whole; of older ones only the LoRA stays, to be tried
MAX_CHECKPOINTS = 10  # the newest, and the best one besides: a LoRA of rank 64 of a 6 B model takes 0.6 GB

Facts = dict[str, dict]  # by file name: `size` in bytes, and `sha256`


def write_manifest(folder: Path, step: int, files: Facts) -> None:
    """Makes the folder the complete checkpoint of a step, with these files."""
    manifest = {**stamp(SCHEMA), "step": step, "files": files}
    replace_file(folder / MANIFEST, json.dumps(manifest, indent=2))


def file_facts(folder: Path, names: Iterable[str]) -> Facts:
    """What a manifest says of files that have just been written."""
    return {
        name: {"size": (folder / name).stat().st_size, "sha256": hash_file(folder / name)} for name in names
    }


def hash_file(path: Path) -> str:
    """Its SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> Facts:
    """The files of a checkpoint; empty where there is no manifest of this folder that can be read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if (manifest["schema"], manifest["step"]) != (SCHEMA, int(folder.name)):
            return {}
        return {
            name: {"size": facts["size"], "sha256": facts["sha256"]}
            for name, facts in manifest["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def is_there(folder: Path, name: str) -> bool:
    """Whether a checkpoint has this file, by its size alone: quick, and blind for a flipped bit."""
    facts, file = read_manifest(folder).get(name), folder / name
    return facts is not None and file.is_file() and file.stat().st_size == facts["size"]


def find_damage(folder: Path, files: Facts) -> str:
    """The first of these files that is not as it was written, and what is wrong; empty when all are whole."""
    for name, facts in files.items():
        try:
            if (size := (folder / name).stat().st_size) != facts["size"]:
                return f"{name} has {size} bytes instead of {facts['size']}"
            if hash_file(folder / name) != facts["sha256"]:
                return f"{name} does not hold what was written"
        except OSError as error:  # missing, or a disk that cannot read it any more
            return f"{name} cannot be read: {error.strerror}"
    return ""


def is_of_another_version(folder: Path) -> bool:
    """Whether another version of this program made the checkpoint."""
    if (folder / "student.safetensors").exists():
        return True
    try:
        return json.loads((folder / MANIFEST).read_bytes())["schema"] > SCHEMA
    except (OSError, ValueError, KeyError, TypeError):
        return False
