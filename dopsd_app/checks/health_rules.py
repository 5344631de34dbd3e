"""What health scores mean: which checkpoint is the best, and when to warn."""

from collections.abc import Collection, Sequence

from dopsd_app.jobs.events import HealthMeasured

SHOWN = 2  # captions that previews show where nobody has written prompts for them
PROMPTS = 4  # with the concept in them; two are the least that following can be measured in
LEAST_QUALITY = 0.8  # by the vision tower, which sees complete ruin only
LEAST_JUDGED_QUALITY = 0.9  # the built-in base's judge sees less: no good look of health_fit is below
LEAST_FOLLOWING = 0.1
MOST_DRIFT = 1.0  # as far as any others are. The built-in base draws creatures only: there all become yours
CLOSE = 0.8  # of the greatest merit: so few pictures do not tell such steps apart
EARLIER = "An earlier checkpoint may be the better one;"
COMPLAINTS = {
    "quality": f"Pictures are getting worse. {EARLIER} a lower learning rate or fewer steps help.",
    "following": f"What the prompt says counts less and less. {EARLIER} captions that describe the scene,"
    " fewer steps or a lower learning rate help.",
    "drift": f"Pictures of other things are changing too. {EARLIER} fewer steps or a lower learning rate keep"
    " them as they were.",
}


def merit(health: HealthMeasured, base: HealthMeasured) -> float:
    """How good a LoRA is, all in all: what it has learned of the concept, by what it has kept.

    Following counts only where it is about to be lost: above that, few prompts tell little.
    """
    learned = max(0.0, health.concept - base.concept)
    following = 1.0 if health.following is None else min(1.0, max(0.0, health.following / LEAST_FOLLOWING))
    return learned * following * health.quality / (1 + health.drift)


def best_step(measured: Sequence[HealthMeasured], steps: Collection[int]) -> int | None:
    """The last of these steps whose merit is close to the greatest of all, else the one with the most.

    None where none was measured. The greatest of all: else, each time the best is thinned out, a worse one
    would be close to what is left.
    """
    if not measured or measured[0].step != 0:
        return None
    merits = {health.step: merit(health, measured[0]) for health in measured[1:]}
    known = [step for step in merits if step in steps]
    close = [step for step in known if merits[step] >= CLOSE * max(merits.values())]
    return max(close) if close else max(known, key=lambda step: (merits[step], step), default=None)


def what_is_bad(health: HealthMeasured, judged: bool) -> str:
    """The worst of it, a key of COMPLAINTS; empty where all is well. `judged`: of the built-in base."""
    if health.quality < (LEAST_JUDGED_QUALITY if judged else LEAST_QUALITY):
        return "quality"
    if health.following is not None and health.following < LEAST_FOLLOWING:
        return "following"
    return "drift" if not judged and health.drift > MOST_DRIFT else ""


def complaint(health: HealthMeasured, judged: bool) -> str:
    """What a person should know about it, in a sentence; empty where all is well."""
    return COMPLAINTS.get(what_is_bad(health, judged), "")
