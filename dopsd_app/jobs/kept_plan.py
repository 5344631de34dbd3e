"""The memory plan that a run trains by, in its folder: a run that goes on keeps to it."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from dopsd_app.files import replace_file, retry
from dopsd_app.models.memory_plan import MemoryPlan
from dopsd_app.schema import check_schema, stamp, without_stamp

KEPT_PLAN = "memory_plan.json"
SCHEMA = 1


@dataclass(frozen=True)
class KeptPlan:
    """A plan; and where memory ran out, phases that a later one must keep below these bytes.

    Where it ran out at a drawing beside the run, `beside` is the resolution that others must keep below, in
    pixels; else 0.
    """

    plan: MemoryPlan
    ran_out: dict[str, int] = field(default_factory=dict)
    beside: int = 0


def keep_plan(folder: Path, kept: KeptPlan) -> None:
    """Puts it into the folder of a run."""
    fields = {**stamp(SCHEMA), "ran_out": kept.ran_out, "beside": kept.beside, "plan": kept.plan.to_fields()}
    replace_file(folder / KEPT_PLAN, json.dumps(fields, indent=2))


def read_kept_plan(folder: Path) -> KeptPlan | None:
    """The plan of a run; None for one that has not begun, or whose plan cannot be read: it gets a new one."""
    try:
        fields = json.loads(retry((folder / KEPT_PLAN).read_bytes))
        check_schema(fields, SCHEMA, folder.name)
        fields = without_stamp(fields)
        ran_out = {str(phase): int(most) for phase, most in fields["ran_out"].items()}
        beside = int(fields.get("beside", 0))  # earlier versions did not keep it
        return KeptPlan(MemoryPlan.from_fields(fields["plan"]), ran_out, beside)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
