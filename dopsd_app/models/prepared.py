"""A quantized transformer that is kept on disk: the next start reads it, and not the files it was made of."""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from dopsd_app.files import free_disk, replace_file
from dopsd_app.models.base_report import fingerprint_files
from dopsd_app.models.catalog import BaseModelPaths
from dopsd_app.models.frozen import KINDS, StoredTensor
from dopsd_app.models.pipeline_folder import is_whole, read_header
from dopsd_app.models.repository import assets_folder

SCHEMA = 1  # of such a file, and of how int8 rounds
PREPARED_FOLDER = "prepared"
# In a file's header: the hash of all that it follows from, and that of the rest of the header.
MADE_OF, TENSORS = "made_of", "tensors"
UNFINISHED = 86_400  # seconds after which nobody writes an unfinished file any more
DISK_ROOM = 5 * 2**30  # bytes that are left free


@dataclass(frozen=True)
class Prepared:
    """Where a quantized transformer is kept, or is to be."""

    file: Path
    made_of: str

    @classmethod
    def of(
        cls,
        place: BaseModelPaths,
        part: str,
        quantization: str,
        targets: str,
        dtype: torch.dtype,
        device: str,
    ) -> "Prepared":
        """That of a part as its files are now: others of the same base model lie in the same folder.

        A card may round otherwise than a processor: each has its own.
        """
        base = place.folder.parent if place.commit else place.folder  # of all commits
        folder = assets_folder(PREPARED_FOLDER, _hash(str(base.resolve()))[:24])
        source = _hash(fingerprint_files(place.folder.joinpath(part).iterdir()))
        how = [SCHEMA, source, quantization, targets, str(dtype), device]
        if quantization == "nf4":
            how.append(version("bitsandbytes"))
        made_of = _hash(how)
        return cls(folder / f"{quantization}-{source[:12]}-{made_of[:12]}.safetensors", made_of)

    def read(self) -> dict[str, StoredTensor] | None:
        """The tensors by their names; None where there are none, or a file that is another's or damaged."""
        if not is_whole(self.file):
            return None
        header, _ = read_header(self.file)
        said = header.pop("__metadata__", {})
        if said != {MADE_OF: self.made_of, TENSORS: _hash(header)}:
            return None
        return {
            name: StoredTensor(self.file, name, facts["dtype"], tuple(facts["shape"]))
            for name, facts in header.items()
        }

    def write(self, tensors: dict[str, Tensor]) -> None:
        """Keeps the tensors where the disk has room for them, in place of what is out of date."""
        folder, size = self.file.parent, sum(tensor.nbytes for tensor in tensors.values())
        try:
            self._remove_others(folder)
            if free_disk(folder) < size + DISK_ROOM:
                return
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(self.file, _pieces(tensors, self.made_of))
        except OSError:
            # The run has what it needs: the next one prepares it again. What is there is whole.
            return

    def _remove_others(self, folder: Path) -> None:
        """Removes those of other files, others of the same quantization, and what was never finished."""
        quantization, source, _ = self.file.name.split("-")
        for path in folder.glob("*"):
            kept, age = path.name.split("-"), time.time() - path.stat().st_mtime
            if path.name.startswith("."):
                old = age > UNFINISHED  # another process may be writing it now
            else:
                old = path != self.file and (kept[0] == quantization or kept[1:2] != [source])
            if old:
                path.unlink(missing_ok=True)


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _pieces(tensors: dict[str, Tensor], made_of: str) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file, tensor by tensor: their own writer would hold all of them at once."""
    header: dict[str, dict] = {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        kind = KINDS[tensor.dtype]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps({"__metadata__": {MADE_OF: made_of, TENSORS: _hash(header)}, **header}).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8
    yield len(text).to_bytes(8, "little") + text
    for tensor in tensors.values():
        yield memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
