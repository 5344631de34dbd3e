"""Builds the built-in base, stage by stage: python -m pocket.build STAGE [--minutes N] [--state DIR].

Made on two CPU cores: `tokenizer`, `autoencoder --minutes 21`, `judge --minutes 43` and `joint --minutes 53`
in a first world, whose creatures were turned and mirrored, with AdamW alone; from there `joint --minutes 232`
with Muon, the last 100 of them in the world of today, which `judge --minutes 8` taught the judge; then
`distil --minutes 50`, `vision --minutes 12`, `parent`, `export`, `judge --minutes 17` for pictures as people
have them, and `measure`. Any stage can be stopped and run on, also on a machine that has none of the state:
it goes on from the shipped tokenizer, autoencoder, judge and parent.
"""

import argparse
import os
from pathlib import Path

import torch

from pocket.autoencoder import train_autoencoder
from pocket.data import bring_shipped
from pocket.distil import train_distil
from pocket.examples import write_examples
from pocket.export import export
from pocket.joint import train_joint
from pocket.measure import load_network, measure, save_parent, save_samples
from pocket.pool import draw_pool
from pocket.tokens import train_tokenizer
from pocket.train_judge import train_judge
from pocket.vision import train_vision

DEFAULT_STATE = Path(os.environ.get("POCKET_STATE", Path.home() / ".cache" / "pocket-turbo"))


TRAINING = {
    "autoencoder": train_autoencoder,
    "judge": train_judge,
    "joint": train_joint,
    "vision": train_vision,
    "distil": train_distil,
}
OTHERS = ("tokenizer", "parent", "sample", "export", "measure", "examples")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("stage", choices=[*TRAINING, *OTHERS])
    add("--state", type=Path, default=DEFAULT_STATE, help="folder for the pool and the checkpoints")
    add("--minutes", type=float, default=15, help="training time of the stage, over all its runs")
    add("--workers", type=int, default=2, help="processes of one thread each; CUDA uses none")
    add("--checkpoint", default="distil", choices=["joint", "distil"], help="what is sampled or exported")
    add("--out", type=Path, default=Path("assets/pocket-turbo"), help="folder of the exported pipeline")
    add("--result", type=Path, default=Path("benchmarks/results/pocket_turbo.json"))
    return parser.parse_args()


def main() -> None:
    arguments = read_arguments()
    torch.set_num_threads(os.cpu_count())  # workers have one thread each, and wait while weights are stepped
    draw_pool(arguments.state / "pool")
    bring_shipped(arguments.state)
    if arguments.stage in TRAINING:
        TRAINING[arguments.stage](arguments.state, arguments.minutes, arguments.workers)
    elif arguments.stage == "tokenizer":
        train_tokenizer().save_pretrained(arguments.state / "tokenizer")
    elif arguments.stage == "parent":
        save_parent(arguments.state)
    elif arguments.stage == "sample":
        model = load_network(arguments.state, arguments.checkpoint)
        save_samples(model, arguments.state / f"samples_{arguments.checkpoint}.png")
    elif arguments.stage == "export":
        export(arguments.state, arguments.checkpoint, arguments.out)
    elif arguments.stage == "measure":
        measure(arguments.state, arguments.out, arguments.result)
    elif arguments.stage == "examples":
        write_examples(Path("assets/examples"))


if __name__ == "__main__":
    main()
