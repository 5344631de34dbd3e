"""What the judge's findings are compared with: the truth of the world, and other pictures' features."""

import torch
from torch import Tensor

from dopsd_app.checks.judge.classifier import ATTRIBUTES, CONCEPT
from dopsd_app.checks.judge.world import Concept, Scene


def truth(concept: Concept, scene: Scene) -> dict[str, int]:
    """The true indices of a concept's attributes and of its scene's."""
    return {
        name: getattr(thing, name)
        for thing in (concept, scene)
        if thing
        for name in ATTRIBUTES
        if hasattr(thing, name)
    }


def agreement(predictions: dict[str, Tensor], concept: Concept) -> dict[str, float]:
    """Fractions of the pictures with each attribute, with `colour_and_pattern` and with `all` six."""
    right = {name: predictions[name] == getattr(concept, name) for name in CONCEPT}
    together = {
        "colour_and_pattern": right["body"] & right["second"] & right["pattern"],
        "all": torch.stack(list(right.values())).all(0),
    }
    return {name: hits.float().mean().item() for name, hits in (right | together).items()}


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Distance of two sets of features as Gaussians: |mean difference|^2 + trace(A + B - 2 sqrt(A B))."""
    a, b = a.double(), b.double()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    # The trace of sqrt(A B) is the sum of the roots of the eigenvalues of A B: real, and not negative.
    roots = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * roots)
