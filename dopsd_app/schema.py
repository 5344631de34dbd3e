"""Which form a folder or a file of the program's has: a number that is written with it and read first."""

import json
from collections.abc import Mapping
from pathlib import Path

from dopsd_app import __version__
from dopsd_app.errors import KnownFailure
from dopsd_app.files import replace_file

STAMP_FILE = "schema.json"  # of a folder whose other files hold nothing but data


def stamp(schema: int) -> dict:
    """What stands beside the rest: the number of its form, and the version of the program that wrote it."""
    return {"schema": schema, "version": __version__}


def without_stamp(stored: Mapping) -> dict:
    """What was stored, without what `stamp` added."""
    return {name: value for name, value in stored.items() if name not in stamp(0)}


def check_schema(stored: Mapping, known: int, what: str, failure: type[KnownFailure] = KnownFailure) -> None:
    """Raises `failure` for what a later version wrote in a form that this one does not know.

    What has no number is of form 1, as everything was before there were numbers; ValueError for what is no
    number.
    """
    schema = stored.get("schema", 1)
    if type(schema) is not int or schema < 1:
        raise ValueError(f"{schema!r} is no schema number.")
    if schema > known:
        version = stored.get("version")
        by = f" ({version})" if isinstance(version, str) else ""
        raise failure(f"{what} was made by a later version of this program{by}. Use that one.")


def claim_folder(folder: Path, schema: int, what: str, failure: type[KnownFailure] = KnownFailure) -> None:
    """Makes a folder that holds things of this form; raises `failure` for one of a later version.

    One without a number is of form 1.
    """
    check_folder(folder, schema, what, failure)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / STAMP_FILE).exists():
        replace_file(folder / STAMP_FILE, json.dumps(stamp(schema)))


def check_folder(folder: Path, schema: int, what: str, failure: type[KnownFailure] = KnownFailure) -> None:
    """Raises `failure` for a folder that a later version made, by the number that `claim_folder` left."""
    try:
        stored = json.loads((folder / STAMP_FILE).read_bytes())
        check_schema(stored, schema, what, failure)
    except FileNotFoundError:
        return
    except (OSError, ValueError, AttributeError) as error:
        if isinstance(error, failure):
            raise
        sentence = f"{what} cannot be read: its {STAMP_FILE} is damaged. Delete that folder: it is made anew."
        raise failure(sentence) from error
