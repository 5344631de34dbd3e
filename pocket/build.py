"""Builds the built-in base, stage by stage: python -m pocket.build STAGE [--minutes N] [--state DIR]."""

import argparse
import os
from pathlib import Path

import torch

from pocket.autoencoder import train_autoencoder
from pocket.distil import train_distil
from pocket.examples import write_examples
from pocket.export import export
from pocket.joint import train_joint
from pocket.measure import load_network, measure, save_samples
from pocket.pool import draw_pool
from pocket.train_judge import train_judge

DEFAULT_STATE = Path(os.environ.get("POCKET_STATE", Path.home() / ".cache" / "pocket-turbo"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "stage",
        choices=["autoencoder", "joint", "distil", "judge", "sample", "export", "examples", "measure"],
    )
    parser.add_argument(
        "--state", type=Path, default=DEFAULT_STATE, help="folder for the pool and the checkpoints"
    )
    parser.add_argument(
        "--minutes", type=float, default=15, help="training time of the stage, over all its runs"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each; CUDA uses none")
    parser.add_argument(
        "--checkpoint", default="joint", help="whose moving average is sampled: joint or distil"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("assets/pocket-turbo"), help="folder of the exported pipeline"
    )
    parser.add_argument("--result", type=Path, default=Path("benchmarks/results/pocket_turbo_v0.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    draw_pool(arguments.state / "pool")
    if arguments.stage == "autoencoder":
        train_autoencoder(arguments.state, arguments.minutes, arguments.workers)
    elif arguments.stage == "joint":
        train_joint(arguments.state, arguments.minutes, arguments.workers)
    elif arguments.stage == "distil":
        train_distil(arguments.state, arguments.minutes, arguments.workers)
    elif arguments.stage == "judge":
        train_judge(arguments.state, arguments.minutes, arguments.workers)
    elif arguments.stage == "export":
        export(arguments.state, arguments.checkpoint, arguments.out)
    elif arguments.stage == "examples":
        write_examples(Path("assets/examples"))
    elif arguments.stage == "sample":
        model = load_network(arguments.state, arguments.checkpoint)
        save_samples(model, arguments.state / f"samples_{arguments.checkpoint}.png")
    elif arguments.stage == "measure":
        measure(arguments.state, arguments.out, arguments.result)


if __name__ == "__main__":
    main()
