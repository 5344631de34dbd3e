"""Which training runs each part of the comparison consists of."""

from collections.abc import Callable, Iterable

from benchmarks.concepts import concepts_of
from benchmarks.levers import FINALS, LEVERS, RECIPE
from benchmarks.methods import Method
from benchmarks.rows import BUDGETS, CURVE_BUDGETS, LONG_BUDGETS, SETTINGS_OF, UNTRAINED, Job, best_settings

RECIPES_RATES = (1e-3, 3e-3, 1e-2)  # among the levers; all others have its best one
LONG = {  # by learning rate: one at which all rise up to the sweep's greatest length; the best of these two
    1e-3: ("sft", "sft_on_parent", RECIPE, "dopsd_fast"),
    3e-3: ("sft", RECIPE),
}
SEEDS, FINAL_SEEDS = 4, 2
HEALTHS_FACTORS = (1, 5, 10)  # of the best learning rate: well, in between, and all ruined from the start


def sweep_jobs(methods: Iterable[str], rates: Callable[[str], Iterable[float]]) -> list[Job]:
    """Every method at its learning rates; the lengths are looked at on the way."""
    return [
        job
        for method in methods
        for rate in rates(method)
        for job in _development("sweep", method, rate, BUDGETS)
    ]


def lever_jobs(levers: Iterable[str]) -> list[Job]:
    """Every lever at the recipe's best learning rate, and the recipe at some more."""
    rates = {lever: RECIPES_RATES if lever == RECIPE else best_settings(RECIPE)[:1] for lever in levers}
    return [
        job
        for lever in levers
        for rate in rates[lever]
        for job in _development("levers", lever, rate, curve_budgets(LEVERS[lever]))
    ]


def curve_budgets(lever: Method) -> tuple[int, ...]:
    """After how many passes a lever is looked at: none once the learning rate has fallen to nothing."""
    return tuple(budget for budget in CURVE_BUDGETS if budget <= (lever.falls_until or CURVE_BUDGETS[-1]))


def _development(part: str, method: str, rate: float, budgets: tuple[int, ...]) -> list[Job]:
    return [
        Job(part, method, concept, 0, rate, budgets) for concept in range(len(concepts_of("development")))
    ]


def finals_jobs() -> list[Job]:
    """The recipe at its best learning rate, and what was put together from the levers; on several seeds."""
    rate = best_settings(RECIPE)[0]
    return [
        Job("finals", name, concept, seed, rate, BUDGETS if name == RECIPE else BUDGETS[:-1])
        for seed in range(FINAL_SEEDS)
        for name in FINALS
        for concept in range(len(concepts_of("development")))
    ]


def test_jobs(methods: Iterable[str]) -> list[Job]:
    """Every method with its best settings, and the untrained; one seed of all of them before the next."""
    chosen = {method: best_settings(SETTINGS_OF.get(method, method)) for method in methods}
    settings = {**dict.fromkeys(UNTRAINED, (0.0, 0)), **chosen}
    return [
        Job("test", method, concept, seed, rate or 1e-3, (budget,))
        for seed in range(SEEDS)
        for method, (rate, budget) in settings.items()
        for concept in range(len(concepts_of("test")))
    ]


def flawless_jobs() -> list[Job]:
    """What becomes of the two where the training pictures are better than anything that the base draws."""
    chosen = {"teacher": (0.0, 0), **{method: best_settings(method) for method in ("sft", RECIPE)}}
    return [
        Job("flawless", method, concept, 0, rate or 1e-3, (budget,))
        for method, (rate, budget) in chosen.items()
        for concept in range(len(concepts_of("test")))
    ]


def long_jobs() -> list[Job]:
    """Where methods end with four times the passes: many still rise at the sweep's greatest length."""
    return [
        job
        for rate, methods in LONG.items()
        for method in methods
        for job in _development("long", method, rate, LONG_BUDGETS)
    ]


def health_jobs() -> list[Job]:
    """The recipe at its best learning rate, and at some that are to ruin something.

    On development concepts, which rules are fitted to, and on the test's, which show what they are worth.
    """
    rate = best_settings(RECIPE)[0]
    return [
        Job(part, RECIPE, concept, 0, factor * rate, CURVE_BUDGETS)
        for part, concepts in (("health_fit", "development"), ("health", "test"))
        for factor in HEALTHS_FACTORS
        for concept in range(len(concepts_of(concepts)))
    ]
