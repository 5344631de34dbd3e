"""A pool of drawn pictures on disk, every concept of training in several scenes, so that no stage waits."""

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple
from itertools import repeat
from pathlib import Path

import numpy as np

from dopsd_app.checks.judge.world import Concept, Scene, all_concepts, draw, random_scene

VIEWS = 4  # scenes per concept; picture i shows concept i // VIEWS
SIDE = 64  # pixels


class Pool:
    """The drawn pictures (N, 64, 64, 3) uint8, with the concept and the scene of each."""

    def __init__(self, folder: Path, views: int = VIEWS):
        self.views = views
        self.pictures = np.load(folder / "pictures.npy", mmap_mode="r")
        self.concepts = [Concept(*map(int, row)) for row in np.load(folder / "concepts.npy")]
        self.scenes = [Scene(*map(int, row)) for row in np.load(folder / "scenes.npy")]

    def __len__(self) -> int:
        return len(self.pictures)

    def concept(self, index: int) -> Concept:
        return self.concepts[index // self.views]


def draw_concept(number: int, concept: Concept, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """All views of one concept: pictures (VIEWS, 64, 64, 3) and their scenes (VIEWS, 3)."""
    rng = np.random.default_rng((seed, number))
    scenes = [random_scene(rng) for _ in range(VIEWS)]
    return np.stack([draw(concept, scene, SIDE) for scene in scenes]), np.array(
        [astuple(scene) for scene in scenes]
    )


def draw_pool(folder: Path, seed: int = 0) -> Pool:
    """Draw the pool once; a folder whose manifest exists is complete and only opened."""
    if not (folder / "manifest.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        concepts = all_concepts(held_out=False)
        concepts = [concepts[i] for i in np.random.default_rng(seed).permutation(len(concepts))]
        shape = (len(concepts) * VIEWS, SIDE, SIDE, 3)
        pictures = np.lib.format.open_memmap(folder / "pictures.npy", "w+", np.uint8, shape)
        scenes = np.zeros((shape[0], 3), np.int64)
        with ProcessPoolExecutor(2) as workers:
            numbers = range(len(concepts))
            drawn = workers.map(draw_concept, numbers, concepts, repeat(seed), chunksize=64)
            for number, (views, rows) in enumerate(drawn):
                pictures[number * VIEWS : (number + 1) * VIEWS] = views
                scenes[number * VIEWS : (number + 1) * VIEWS] = rows
        pictures.flush()
        np.save(folder / "concepts.npy", np.array([astuple(c) for c in concepts]))
        np.save(folder / "scenes.npy", scenes)
        (folder / "manifest.json").write_text(
            json.dumps({"pictures": shape[0], "views": VIEWS, "seed": seed})
        )
    return Pool(folder)
