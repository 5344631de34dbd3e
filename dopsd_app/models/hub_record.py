"""What the Hub reported of a base model's repository, kept for when it is not asked."""

import json
from dataclasses import dataclass
from pathlib import Path

from dopsd_app.files import replace_file
from dopsd_app.models.architecture import Architecture, BaseModelError, Sizes
from dopsd_app.models.architectures import ARCHITECTURES
from dopsd_app.models.repository import assets_folder
from dopsd_app.schema import check_schema, stamp

SCHEMA = 2


@dataclass(frozen=True)
class HubRecord:
    """A repository at one commit."""

    files: dict[str, int]  # bytes of each file that the pipeline is loaded from
    digests: dict[str, str]  # of each of them, as `RemoteFile.digest`
    architecture: Architecture
    sizes: Sizes


def recall(repository: str, commit: str) -> HubRecord | None:
    """What the Hub reported of this commit; None where it was never asked.

    Raises `BaseModelError` for what a later version of the program kept.
    """
    file = _file(repository, commit)
    try:
        fields = json.loads(file.read_bytes())
        check_schema(fields, SCHEMA, f"What the Hub told of {repository}, kept in {file},", BaseModelError)
        architecture = ARCHITECTURES[fields["pipeline_class"]]
        sizes = architecture.sizes.from_fields(fields["sizes"])
        return HubRecord(fields["files"], fields["digests"], architecture, sizes)
    except BaseModelError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # a bad disk, or a kind that is gone
        return None


def remember(repository: str, commit: str, record: HubRecord) -> None:
    """Keeps what the Hub reported of a commit."""
    file = _file(repository, commit)
    file.parent.mkdir(parents=True, exist_ok=True)
    fields = {"pipeline_class": record.architecture.pipeline_class, "sizes": record.sizes.to_fields()}
    files = {"files": record.files, "digests": record.digests}
    replace_file(file, json.dumps({**stamp(SCHEMA), **files, **fields}))


def _file(repository: str, commit: str) -> Path:
    return assets_folder("bases", repository) / f"{commit}.json"
