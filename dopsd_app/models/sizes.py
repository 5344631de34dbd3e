"""What the files of a base model tell of its size."""

import json
import math
from pathlib import Path

from dopsd_app.models.architecture import Architecture, Eyes, Sizes, Stored
from dopsd_app.models.pipeline_folder import EYES_PREFIX, HEAD_PREFIX, read_header, weight_files

DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError)  # what odd configurations raise


def read_sizes(architecture: Architecture, folder: Path, vision_tower: Path | None) -> Sizes:
    """Sizes of a pipeline's folder and the teacher's eyes: as on the Hub where these are not here yet.

    Raises one of `DAMAGED` for what is not as it should be.
    """
    configurations = read_configurations(architecture, folder)
    eyes = _own_eyes(architecture, configurations)
    parts = [part for part in folder.iterdir() if part.is_dir()] + ([vision_tower] if vision_tower else [])
    stored = {path for part in parts for path in part.iterdir() if path.is_file()}
    stored |= {path for part in architecture.parts for path in weight_files(folder / part)}
    return architecture.sizes.of(
        Stored(
            configurations=configurations,
            parameters={part: count_parameters(folder / part) for part in architecture.parts},
            eyes=_eyes_configuration(eyes, vision_tower),
            eyes_parameters=_eyes_parameters(eyes, vision_tower),
            stored_bytes=sum(path.stat().st_size for path in stored),
        )
    )


def read_configurations(architecture: Architecture, folder: Path) -> dict[str, dict]:
    """The config.json of each part, where it has one here."""
    files = {part: folder / part / "config.json" for part in architecture.parts}
    return {part: _read_json(file) for part, file in files.items() if file.is_file()}


def sizes_on_hub(
    architecture: Architecture, configurations: dict[str, dict], parameters: dict[str, int], stored: int
) -> Sizes:
    """Sizes of a pipeline of which only the configurations are here; `stored` is its bytes on the Hub."""
    eyes = _own_eyes(architecture, configurations)
    return architecture.sizes.of(
        Stored(
            configurations=configurations,
            parameters=parameters,
            eyes=_eyes_configuration(eyes, None),
            eyes_parameters=_eyes_parameters(eyes, None),
            stored_bytes=stored + (eyes.stored_bytes if eyes else 0),
        )
    )


def _own_eyes(architecture: Architecture, configurations: dict[str, dict]) -> Eyes | None:
    """The eyes of the context that the teacher has by itself."""
    return architecture.eyes_for("auto", configurations["text_encoder"].get("hidden_size", 0))


def _eyes_configuration(eyes: Eyes | None, vision_tower: Path | None) -> dict:
    if eyes is None:
        return {}
    return _read_json(vision_tower / "preprocessor_config.json") if vision_tower else eyes.configuration


def _eyes_parameters(eyes: Eyes | None, vision_tower: Path | None) -> int:
    if eyes is None:
        return 0
    return count_parameters(vision_tower) if vision_tower else eyes.parameters


def count_parameters(folder: Path) -> int:
    """Numbers in a folder's weights that are read, by their headers.

    Of a whole vision-language model those are its eyes alone; of a language model, all but its head.
    """
    shapes: dict[str, list[int]] = {}
    for path in weight_files(folder):
        shapes |= _read_shapes(path)
    seeing = {name for name in shapes if name.startswith(EYES_PREFIX)}
    return sum(math.prod(shapes[name]) for name in seeing or shapes if not name.startswith(HEAD_PREFIX))


def _read_shapes(path: Path) -> dict[str, list[int]]:
    header, _ = read_header(path)
    return {name: tensor["shape"] for name, tensor in header.items() if name != "__metadata__"}


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
