"""What health scores mean: which checkpoint is the best, when to warn, when to stop. No torch here."""

from collections.abc import Collection, Iterable, Sequence

from dopsd_app.events import Event, HealthMeasured

PROMPTS = 4  # with the concept in them; two are the least that following can be seen in
# Not fitted yet: `python -m benchmarks.method health` is to tell.
LEAST_FOLLOWING = 0.3
MOST_DRIFT = 1.5  # the built-in base draws creatures only, and all of them become yours: none warns there
PATIENCE = 3  # previews without a better one


def measured_in(events: Iterable[Event]) -> tuple[HealthMeasured, ...]:
    """The last measurement of every step, by step; the base model's own is step 0."""
    health = {event.step: event for event in events if isinstance(event, HealthMeasured)}
    return tuple(health[step] for step in sorted(health))


def merit(health: HealthMeasured, base: HealthMeasured) -> float:
    """How good a LoRA is, all in all: what it has learned of the concept, by what it has kept."""
    learned = max(0.0, health.concept - base.concept)
    following = 1.0 if health.following is None else max(0.0, health.following)
    return learned * following / (1 + health.drift)


def best_step(measured: Sequence[HealthMeasured], steps: Collection[int]) -> int | None:
    """Which of these steps has the greatest merit, the later of equal ones; None where none was measured."""
    if not measured or measured[0].step != 0:
        return None
    known = [health for health in measured if health.step in steps]
    return max(known, key=lambda health: (merit(health, measured[0]), health.step)).step if known else None


def complaint(health: HealthMeasured) -> str:
    """What a person should know about it, in a sentence; empty where all is well."""
    if health.drift > MOST_DRIFT:
        return (
            "Pictures of other things are changing too. An earlier checkpoint may be the better one; fewer"
            " steps or a lower learning rate keep them as they were."
        )
    if health.following is not None and health.following < LEAST_FOLLOWING:
        return (
            "What the prompt says counts less and less. An earlier checkpoint may be the better one; captions"
            " that describe the scene, fewer steps or a lower learning rate help."
        )
    return ""


def stopped_improving(measured: Sequence[HealthMeasured]) -> bool:
    """Whether the best was PATIENCE measurements ago, or longer."""
    steps = [health.step for health in measured if health.step]
    best = best_step(measured, steps)
    return best is not None and len(steps) - 1 - steps.index(best) >= PATIENCE
