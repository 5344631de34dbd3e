"""What the built-in base can do, counted with the judge on creatures kept out of its training."""

import json
import os
import platform
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dopsd_app.checks.judge.classifier import ATTRIBUTES, CONCEPT, features, judge, load_judge
from dopsd_app.checks.judge.world import Concept, Scene, draw, random_concept, random_scene
from pocket.autoencoder import decode_latents, encode_pictures
from pocket.captions import asked_of, full_caption, usual_caption
from pocket.crew import view_parameters
from pocket.judge import frechet_distance, truth
from pocket.network import Network
from pocket.sampling import sample, save_grid
from pocket.wear import WORN, wear

PARENT = Path(__file__).with_name("parent.safetensors")

PARENTS_STEPS = {"num_inference_steps": 32, "guidance": 2.5}  # as it is when it is distilled from

Model = tuple[Network, PreTrainedTokenizerBase, AutoencoderKL]


def load_network(state: Path, checkpoint: str) -> Model:
    """The moving averages of a stage: joint is the parent; distil replaces its transformer."""
    tokenizer = AutoTokenizer.from_pretrained(state / "tokenizer")
    network = load_parent(tokenizer, state)
    if checkpoint == "distil":
        saved = torch.load(state / "distil.pt", weights_only=True)
        view_parameters(network.transformer, saved["training"]["ema"])
    return network, tokenizer, AutoencoderKL.from_pretrained(state / "vae").eval()


def load_parent(
    tokenizer: PreTrainedTokenizerBase, state: Path | None = None, eyes: str = "vision"
) -> Network:
    """The many-step parent as this state has it, or where it has none, as it is shipped.

    `eyes`: its vision tower after the stage of that name, "vision" or still "joint".
    """
    network = Network(tokenizer).eval()
    if state and (state / "joint.pt").exists():
        view_parameters(network, torch.load(state / "joint.pt", weights_only=True)["training"]["ema"])
    else:
        network.load_state_dict({name: weight.float() for name, weight in load_file(PARENT).items()})
    if state and eyes == "vision" and (state / "vision.pt").exists():
        saved = torch.load(state / "vision.pt", weights_only=True)
        view_parameters(network.encoder.visual, saved["training"]["ema"])
    return network


def save_parent(state: Path) -> None:
    """Ships the state's parent, encoder and reader too, in float16: from there joint training can go on."""
    network, _, _ = load_network(state, "joint")
    save_file({name: weight.half().contiguous() for name, weight in network.state_dict().items()}, PARENT)


def load_folder(folder: Path) -> Model:
    """The exported pipeline and its vision tower, as they are shipped."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    network = Network(tokenizer).eval()
    network.transformer = ZImageTransformer2DModel.from_pretrained(folder / "transformer").float().eval()
    text = load_file(folder / "text_encoder" / "model.safetensors")
    kept = network.encoder.language_model.state_dict().keys()
    network.encoder.language_model.load_state_dict({name: text[name].float() for name in kept})
    vision = load_file(folder / "vision_tower" / "model.safetensors")
    network.encoder.visual.load_state_dict({name: weight.float() for name, weight in vision.items()})
    return network, tokenizer, AutoencoderKL.from_pretrained(folder / "vae").float().eval()


def draw_cases(count: int, seed: int) -> tuple[list[Concept], list[Scene], list[str], np.ndarray]:
    """Held-out creatures, new scenes, usual captions, and another view of each creature as context."""
    rng = np.random.default_rng((8, seed))
    concepts = [random_concept(rng, held_out=True) for _ in range(count)]
    scenes = [random_scene(rng) for _ in concepts]
    captions = [usual_caption(c, s, rng) for c, s in zip(concepts, scenes, strict=True)]
    return concepts, scenes, captions, np.stack([draw(concept, random_scene(rng)) for concept in concepts])


def pictures_of(model: Model, captions: list[str], context: np.ndarray | None, **settings) -> np.ndarray:
    network, tokenizer, vae = model
    return decode_latents(vae, sample(network, tokenizer, captions, context, **settings))


def save_samples(model: Model, path: Path, count: int = 12) -> None:
    """A sheet: context, target, then with the picture and from text alone, at 4 and at 32 steps each."""
    concepts, scenes, captions, context = draw_cases(count, 1)
    rows = [*context, *(draw(c, s) for c, s in zip(concepts, scenes, strict=True))]
    for shown in (context, None):
        for steps in (4, 32):
            rows += list(pictures_of(model, captions, shown, num_inference_steps=steps))
    save_grid(rows, count, path)
    print("\n".join(captions))


def right_fractions(pictures: np.ndarray, concepts: list[Concept], scenes: list[Scene]) -> dict[str, float]:
    """How often the judge sees what was meant: each attribute, colours with pattern, all six."""
    hits = judge_hits(pictures, concepts, scenes)
    together = {
        "colour_and_pattern": hits["body"] & hits["second"] & hits["pattern"],
        "all": torch.stack([hits[name] for name in CONCEPT]).all(0),
    }
    return {name: round(hit.float().mean().item(), 4) for name, hit in (hits | together).items()}


def judge_hits(pictures: np.ndarray, concepts: list[Concept], scenes: list[Scene]) -> dict[str, Tensor]:
    predictions = judge(pictures, load_judge())
    truths = [truth(concept, scene) for concept, scene in zip(concepts, scenes, strict=True)]
    return {name: predictions[name] == torch.tensor([t[name] for t in truths]) for name in ATTRIBUTES}


def following(
    pictures: np.ndarray, captions: list[str], concepts: list[Concept], scenes: list[Scene]
) -> dict[str, float]:
    """Of what the captions ask for: how often the judge sees it, in each attribute and over `all`.

    A word counts, not the index: "red" is followed by crimson and by salmon.
    """
    predictions = judge(pictures, load_judge())
    hits: dict[str, list[bool]] = {}
    for row, (caption, concept, scene) in enumerate(zip(captions, concepts, scenes, strict=True)):
        wanted = truth(concept, scene)
        for name, table in asked_of(caption, concept, scene).items():
            hits.setdefault(name, []).append(table[predictions[name][row]] == table[wanted[name]])
    hits["all"] = [hit for row in hits.values() for hit in row]
    return {name: round(float(np.mean(row)), 4) for name, row in hits.items()}


def measure(state: Path, folder: Path, result: Path, count: int = 256) -> None:
    """Everything that is claimed about the exported folder; the 32-step parent comes from the state."""
    model, parent = load_folder(folder), load_network(state, "joint")
    concepts, scenes, captions, context = draw_cases(count, 0)
    real = np.stack([draw(c, s) for c, s in zip(concepts, scenes, strict=True)])
    # Many more than are compared with them: the distance of few from few is mostly the noise of both.
    others, other_scenes, _, _ = draw_cases(16 * count, 2)
    other_real = np.stack([draw(c, s) for c, s in zip(others, other_scenes, strict=True)])
    full = [full_caption(concept, scene) for concept, scene in zip(concepts, scenes, strict=True)]
    worn, worn_real = (
        np.stack([wear(picture, np.random.default_rng(9), **WORN) for picture in clean])
        for clean in (context, real)
    )
    pictures = {
        "text_4_steps": pictures_of(model, captions, None),
        "picture_4_steps": pictures_of(model, captions, context),
        "worn_picture_4_steps": pictures_of(model, captions, worn),
        "full_caption_4_steps": pictures_of(model, full, None),
        "text_8_steps": pictures_of(model, captions, None, num_inference_steps=8),
        "parent_text_4_steps": pictures_of(
            parent, captions, None, **PARENTS_STEPS | {"num_inference_steps": 4}
        ),
        "parent_text_32_steps": pictures_of(parent, captions, None, **PARENTS_STEPS),
        "parent_picture_32_steps": pictures_of(parent, captions, context, **PARENTS_STEPS),
    }
    decoded = decode_latents(model[2], encode_pictures(model[2], real))
    squared = np.square(real.astype(np.float64) - decoded).mean()
    real_features = features(other_real, load_judge())
    report = {
        "command": "python -m pocket.build measure",
        "held_out_captions": count,
        "judge_accuracy_on_real_pictures": right_fractions(real, concepts, scenes),
        "judge_accuracy_on_worn_pictures": right_fractions(worn_real, concepts, scenes),
        "judge_accuracy_on_decoded_pictures": right_fractions(decoded, concepts, scenes),
        "autoencoder_psnr_db": round(float(10 * np.log10(255**2 / squared)), 2),
        "follows_caption": {
            name: following(p, full if name.startswith("full") else captions, concepts, scenes)
            for name, p in pictures.items()
        },
        "agreement": {name: right_fractions(p, concepts, scenes) for name, p in pictures.items()},
        "frechet_distance_to_real": {
            name: round(frechet_distance(features(p, load_judge()), real_features), 3)
            for name, p in ({"real": real, "decoded": decoded} | pictures).items()
        },
        "training": training_cost(state),
        "versions": {m.__name__: m.__version__ for m in (torch, diffusers, transformers)},
        "hardware": f"{os.cpu_count()} CPU cores, {platform.machine()}, no GPU used",
    }
    result.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


def training_cost(state: Path) -> dict[str, dict]:
    """Seconds, steps and pictures of every stage that this state has a checkpoint of."""
    costs = {}
    for name in ("autoencoder", "joint", "distil", "vision", "judge"):
        if not (state / f"{name}.pt").exists():  # its result is the shipped one
            continue
        saved = torch.load(state / f"{name}.pt", map_location="cpu", weights_only=True)
        costs[name] = {"seconds": round(saved["seconds"])} | {key: saved[key] for key in ("step", "pictures")}
    return costs
