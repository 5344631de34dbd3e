"""What is planned for cards of every size, and how long it is reckoned to take: the table of docs/cards.md.

Memory and operations follow from simulated steps (simulated.json), seconds from data sheets: nothing here
was measured on these cards.

    python -m benchmarks.cards
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.record import save_result
from dopsd_app.config import load_preset, make_config, preset_for
from dopsd_app.gpus import Gpu
from dopsd_app.models.catalog import CATALOG
from dopsd_app.planning.cost import step_work
from dopsd_app.planning.machine import Machine
from dopsd_app.planning.plan import Plan, make_plan
from dopsd_app.torch_build import KERNELS, VERSION, TorchBuild

GIB = 2**30
TORCH = TorchBuild(VERSION, "13.0", KERNELS["x86_64"]["13.0"])
RESOLUTIONS = (512, 1024)
DESKTOP = 0.5  # GB of the card that it takes
SYSTEM = 4  # GB of the computer's memory that system and browser take
DOCUMENT = Path(__file__).parent.parent / "docs" / "cards.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of the table -->"


@dataclass(frozen=True)
class Computer:
    """A card, and the memory of the computer that it is in, in GB."""

    card: str
    memory: int
    computer: int


COMPUTERS = (
    Computer("RTX 3050", 6, 16),
    Computer("RTX 4060", 8, 16),
    Computer("RTX 3060", 12, 16),
    Computer("RTX 4060 Ti", 16, 32),
    Computer("RTX 4090", 24, 32),
)


def plan_on(computer: Computer, base: str, resolution: int) -> Plan:
    """The preset for a subject, on this computer with a desktop, at this resolution."""
    free = int((0.98 * computer.memory - DESKTOP) * GIB)
    card = Gpu(computer.card, int(0.98 * computer.memory * GIB), free, capability=(8, 9))
    memory = computer.computer * GIB
    machine = Machine((card,), TORCH, memory, memory - SYSTEM * GIB, 8)
    config = replace(
        make_config(load_preset(str(preset_for(base, "subject"))).settings), resolution=resolution
    )
    return make_plan(config, pictures=10, runs_dir=Path("no-runs"), machine=machine)


def row_of(computer: Computer, base: str, resolution: int) -> dict:
    plan = plan_on(computer, base, resolution)
    assert plan.fitted and not plan.problems and not any("memory" in line for line in plan.warnings)
    config = replace(
        make_config(load_preset(str(preset_for(base, "subject"))).settings), resolution=resolution
    )
    memory, sizes = plan.fitted.memory, CATALOG[base].sizes_for(config)
    blocks = sum(kind.count for kind in sizes.blocks(sizes.student_tokens(resolution)))
    return {
        "card": computer.card,
        "card_gb": computer.memory,
        "computer_gb": computer.computer,
        "base": CATALOG[base].label,
        "resolution": resolution,
        "steps": plan.steps,
        "plan": plan.fitted.plan.to_fields(),
        "in_short": in_short(plan.fitted.plan.to_fields(), blocks),
        "reckoned_gib": {
            name: round(getattr(memory, name) / GIB, 2)
            for name in ("encoding", "training", "drawing", "computer")
        },
        "tflop_per_step": round(step_work(config, sizes, plan.fitted.plan) / 1e12, 1),
        "hours": round(plan.seconds / 3600, 1),
    }


def rows() -> list[dict]:
    """A row for each card, base model and resolution."""
    fetched = [name for name, facts in CATALOG.items() if facts.repository]
    return [row_of(at, base, side) for at in COMPUTERS for base in fetched for side in RESOLUTIONS]


def in_short(plan: dict, blocks: int) -> str:
    """How a plan makes a run fit, in a few words."""
    weights = {"none": "weights as they are", "int8": "8 bits", "nf4": "4 bits"}[plan["quantization"]]
    share = min(plan["recomputed_blocks"], blocks) / blocks
    words = {
        f"{share:.0%} made anew": share,
        "weights wait": plan["offloaded_blocks"],
        "activations wait": plan["inputs_in_ram"],
        "captions by layer": plan["encoders_by_layer"],
        "tiles": plan["tiled_decode"],
    }
    return ", ".join([weights, *(word for word, done in words.items() if done)])


def table(found: list[dict]) -> str:
    """The rows as the document shows them."""
    lines = [
        "| card; computer | base model | pixels | how it fits | GB: card, computer | TFLOP a step | hours |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in found:
        memory = row["reckoned_gib"]
        peak = max(memory[name] for name in ("encoding", "training", "drawing"))
        lines.append(
            f"| {row['card']}, {row['card_gb']} GB; {row['computer_gb']} GB | {row['base']}"
            f" | {row['resolution']} | {row['in_short']} | {peak:.1f}, {memory['computer']:.1f}"
            f" | {row['tflop_per_step']:.0f} | {row['hours']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    found = rows()
    save_result("cards", {"rows": found})
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    DOCUMENT.write_text(f"{before}{BEGIN}{table(found)}{END}{after}", encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
