"""The tables of what was measured: methods, levers, and the rules of the health."""

from collections import defaultdict
from collections.abc import Iterable
from itertools import chain

import numpy as np

from benchmarks.health_report import judge_rule, judge_warnings
from benchmarks.levers import RECIPE
from benchmarks.rows import (
    LABELS,
    SETTINGS_OF,
    UNTRAINED,
    best_settings,
    budget_of,
    job_of,
    product,
    products,
    read_rows,
)

ENOUGH = 0.95  # of the recipe's own score: what levers race for
COMPARED_FROM = 300  # passes: before that no lever has learned much
# Student's two-sided 95 % quantiles, for 1 to 9 degrees of freedom: there are ten concepts at the most.
QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
TELLS_OF_COPIES = 0.1  # of the pictures show all of the concept: fewer are luck
PAIRED = ("product", "fidelity", "following", "quality", "copying", "fidelity_1_steps")
EYES = ("judge", "vision")
Runs = dict[tuple[int, int], dict[str, float | None]]  # a method's scores by concept and seed
COLUMNS = {
    "fidelity": "all six",
    "following": "followed",
    "quality": "quality",
    "product": "product",
    "quality_32_steps": "quality at 32 steps",
    "copying": "copying",
    "drift": "drift",
    "takeover": "takeover",
}
STEPS_COLUMNS = {
    "fidelity_1_steps": "all six, 1 step",
    "fidelity_2_steps": "2 steps",
    "fidelity_32_steps": "32 steps",
    "quality_1_steps": "quality, 1 step",
    "quality_2_steps": "2 steps",
    "gain_at_32_steps": "gained at 32 steps",
    "neutral_following": "others followed",
    "neutral_quality": "others' quality",
}
LONG_COLUMNS = {name: COLUMNS[name] for name in ("fidelity", "following", "quality", "product", "copying")}


def make_table(part: str) -> dict:
    """Of "sweep", "test" or "flawless": each method with its best settings.

    Means over concepts with 95 % intervals; each concept's product; how far the recipe is ahead, paired by
    concept and seed; and how the product, and the recipe's lead in it, go with the teacher's own product,
    concept by concept: Pearson's correlation. A further seed counts once every method has it on all concepts.
    """
    rows = [row for row in read_rows() if row["job"]["part"] == part]
    methods = dict.fromkeys(row["job"]["method"] for row in rows)
    chosen = {
        method: None if method in UNTRAINED else best_settings(SETTINGS_OF.get(method, method))
        for method in methods
    }
    found, seconds = defaultdict(dict), {}
    for row in rows:
        job = job_of(row)
        if chosen[job.method] in (None, (job.learning_rate, budget_of(row))):
            found[job.method][job.concept, job.seed] = _scores(row)
            seconds[job.method, job.concept, job.seed] = row["seconds"]
    found = _whole_seeds(found)
    recipes = found.get(RECIPE, {})
    teachers = means_by_concept(found.get("teacher", {}), "product")

    def goes_with_teacher(by_concept: dict[int, float]) -> float | None:
        return correlation(
            (teachers[concept], value) for concept, value in by_concept.items() if concept in teachers
        )

    return {
        method: {
            "runs": len(runs),
            "settings": chosen[method],
            "scores": {name: _over_concepts(method, runs, name) for name in _names(runs)},
            "median_seconds": float(np.median([seconds[method, *key] for key in runs])),
            "products": _products(runs),
            "recipe_ahead_by": {name: _paired(recipes, runs, name) for name in PAIRED},
            "goes_with_teacher": goes_with_teacher(means_by_concept(runs, "product")),
            "lead_goes_with_teacher": goes_with_teacher(_leads(recipes, runs, "product")),
        }
        for method, runs in found.items()
    }


def _whole_seeds(found: dict[str, Runs]) -> dict[str, Runs]:
    """Without the seeds that a method lacks on a concept: means would be of unlike things."""
    keys = {key for runs in found.values() for key in runs}
    lacking = {seed for concept, seed in keys if any((concept, seed) not in runs for runs in found.values())}
    counted = {seed for _, seed in keys} - lacking or {0}
    return {
        name: {key: scores for key, scores in runs.items() if key[1] in counted}
        for name, runs in found.items()
    }


def _scores(row: dict) -> dict:
    """A line's scores, and what follows from them; copying where enough pictures show the concept."""
    scores = {**row["scores"], "product": product(row["scores"])}
    if "quality_32_steps" in scores:
        scores["gain_at_32_steps"] = scores["quality_32_steps"] - scores["quality"]
    return scores | ({} if scores["fidelity"] >= TELLS_OF_COPIES else {"copying": None})


def _names(runs: Runs) -> Iterable[str]:
    return dict.fromkeys(name for scores in runs.values() for name in scores)


def means_by_concept(runs: Runs, name: str) -> dict[int, float]:
    """Of each concept the mean over the seeds that have such a score; where none has, nothing."""
    values = defaultdict(list)
    for (concept, _), scores in runs.items():
        if scores.get(name) is not None:
            values[concept].append(scores[name])
    return {concept: float(np.mean(of_seeds)) for concept, of_seeds in values.items()}


def _products(runs: Runs) -> dict[int, float]:
    """Of each concept the mean product, from which whatever is claimed of single ones can be reckoned."""
    return {concept: round(mean, 4) for concept, mean in sorted(means_by_concept(runs, "product").items())}


def _over_concepts(method: str, runs: Runs, name: str) -> dict | None:
    means = mean_and_interval(means_by_concept(runs, name).values())
    # Neutral prompts are the same beside every concept: untrained, that is one measurement and no spread.
    once = method in UNTRAINED and (name == "drift" or name.startswith("neutral_"))
    return means | {"interval_95": None} if means and once else means


def _paired(recipes: Runs, runs: Runs, name: str) -> dict | None:
    """How far the recipe is ahead, over the concepts."""
    return mean_and_interval(_leads(recipes, runs, name).values())


def _leads(recipes: Runs, runs: Runs, name: str) -> dict[int, float]:
    """How far the recipe is ahead on each concept, over the seeds that both have there."""
    both = {
        key: {name: recipes[key][name] - runs[key][name]}
        for key in runs.keys() & recipes.keys()
        if None not in (recipes[key].get(name), runs[key].get(name))
    }
    return means_by_concept(both, name)


def as_markdown(table: dict) -> str:
    """The table in docs/method.md: a line for each in the order of LABELS, means with their intervals."""
    rows, measured = _in_order(table), _measured(table, COLUMNS)
    lines = [
        [
            LABELS[name],
            "" if row["settings"] is None else _settings(*row["settings"]),
            *(_cell(row["scores"].get(column)) for column in measured),
            f"{row['median_seconds']:.0f}",
            "" if name == RECIPE else _cell(row["recipe_ahead_by"]["product"]),
        ]
        for name, row in rows.items()
    ]
    head = ["", "learning rate, passes", *measured.values(), "seconds", "D-OPSD is ahead by"]
    return _markdown(head, lines)


def steps_as_markdown(table: dict) -> str:
    """What is left with fewer steps than the native ones, what more gain, and what becomes of others."""
    rows, measured = _in_order(table), _measured(table, STEPS_COLUMNS)
    lines = [
        [LABELS[name], *(_cell(row["scores"].get(column)) for column in measured)]
        for name, row in rows.items()
    ]
    return _markdown(["", *measured.values()], lines)


def _in_order(table: dict) -> dict:
    return {name: table[name] for name in LABELS if name in table}


def _measured(table: dict, columns: dict[str, str]) -> dict[str, str]:
    """The columns that most methods have."""
    having = {column: sum(column in row["scores"] for row in table.values()) for column in columns}
    return {column: head for column, head in columns.items() if having[column] > len(table) / 2}


def _cell(value: dict | None) -> str:
    if value is None:
        return ""
    half = "" if value["interval_95"] is None else f" ± {value['interval_95']:.2f}"
    return f"{round(value['mean'], 2) + 0:.2f}{half}"  # adding 0 takes the sign off -0


def _markdown(head: list[str], lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def _settings(rate: float, passes: int) -> str:
    return f"{rate:.0e}, {passes:,}".replace("e-0", "e-")


def mean_and_interval(values: Iterable[float]) -> dict | None:
    """The mean of independent values, and Student's 95 % interval around it; None of none."""
    values = np.array(list(values))
    if not len(values):
        return None
    half = None  # one value tells of no spread
    if len(values) > 1:
        half = QUANTILES[len(values) - 2] * values.std(ddof=1) / len(values) ** 0.5
        half = round(float(half), 4)
    return {"mean": round(float(values.mean()), 4), "interval_95": half}


def correlation(pairs: Iterable[tuple[float, float]]) -> float | None:
    """Pearson's; None of fewer than three pairs, and where either value is always the same."""
    values = np.array(list(pairs))
    if len(values) < 3 or values.std(0).min() < 1e-9:  # less is rounding
        return None
    return round(float(np.corrcoef(values.T)[0, 1]), 3)


def make_levers_table(part: str) -> dict:
    """Of "levers" or "finals", by name and learning rate.

    The score at each budget, how far it is ahead of the recipe's from COMPARED_FROM on (paired by concept),
    and after how many passes it stays at ENOUGH of what the recipe ends with; and how far it is at half the
    recipe's passes ahead of the recipe at all of them, where that was measured. What has not been run on as
    much as the recipe is left out: a mean over the easy creatures is none.
    """
    passes, seconds = _costs(part)
    names = dict.fromkeys(name for name, _, _ in passes)
    found = {name: products(part, name) for name in names}
    recipes_rate = best_settings(RECIPE)[0]
    recipe = {budget: scores for (rate, budget), scores in found[RECIPE].items() if rate == recipes_rate}
    wanted = ENOUGH * float(np.mean(list(recipe[max(recipe)].values())))
    runs = max(map(len, recipe.values()))
    table = {}
    for name, rows in found.items():
        for rate in dict.fromkeys(rate for rate, _ in rows):
            points = {budget: scores for (at, budget), scores in rows.items() if at == rate}
            if min(map(len, points.values())) < runs:
                continue
            curve = {
                passes[name, rate, budget]: float(np.mean(list(s.values()))) for budget, s in points.items()
            }
            table[f"{name}, learning rate {rate:g}"] = {
                "score": {round(at): round(score, 4) for at, score in curve.items()},
                "ahead_of_recipe": _ahead(points, recipe),
                "passes_to_recipes_score": passes_to(wanted, curve),
                "at_half_ahead_of_recipes_end": _at_half_ahead(points, recipe),
                "milliseconds_per_pass": seconds.get((name, rate)),
            }
    return table


def _costs(part: str) -> tuple[dict, dict]:
    """Mean passes at each budget, and the median of milliseconds per pass where they were measured."""
    passes, costs = defaultdict(list), defaultdict(list)
    for row in read_rows():
        job = job_of(row)
        if job.part == part:
            budget = budget_of(row)
            passes[job.method, job.learning_rate, budget].append(row["passes"])
            if budget == job.budgets[-1] and row["seconds"] is not None:
                costs[job.method, job.learning_rate].append(1000 * row["seconds"] / row["passes"])
    return (
        {key: float(np.mean(values)) for key, values in passes.items()},
        {key: round(float(np.median(values)), 1) for key, values in costs.items()},
    )


def _ahead(points: dict[int, dict], recipe: dict[int, dict]) -> dict | None:
    """The mean difference over the budgets that both have, and its interval over the concepts."""
    both = [budget for budget in points if budget in recipe and budget >= COMPARED_FROM]
    differences = defaultdict(list)
    for budget in both:
        for concept, seed in points[budget].keys() & recipe[budget].keys():
            differences[concept].append(points[budget][concept, seed] - recipe[budget][concept, seed])
    return mean_and_interval(np.mean(values) for values in differences.values())


def _at_half_ahead(points: dict[int, dict], recipe: dict[int, dict]) -> dict | None:
    """The difference at half of the passes from the recipe at all of them, and its interval."""
    end = recipe[max(recipe)]
    half = points.get(max(recipe) // 2, {})
    differences = defaultdict(list)
    for concept, seed in half.keys() & end.keys():
        differences[concept].append(half[concept, seed] - end[concept, seed])
    return mean_and_interval(np.mean(values) for values in differences.values())


def passes_to(wanted: float, scores: dict[float, float]) -> int | None:
    """From how many passes on a score stays reached, on straight lines between budgets; None: never."""
    before, reached, since = 0.0, 0.0, None
    for passes, score in scores.items():
        if score < wanted:
            since = None
        elif since is None:
            since = before + (passes - before) * (wanted - reached) / (score - reached)
        before, reached = passes, score
    return None if since is None else round(since)


def make_long_table(part: str) -> dict:
    """Of "long": each method and learning rate at each budget, in passes.

    Means over concepts with 95 % intervals; each concept's product; how far it has risen since the first
    budget; and how far the recipe is ahead in it at the same learning rate and passes. What has not been run
    on all concepts is left out: a mean over the easy ones is none.
    """
    found = defaultdict(lambda: defaultdict(dict))
    for row in read_rows():
        job = job_of(row)
        if job.part == part:
            found[job.method, job.learning_rate][budget_of(row)][job.concept, job.seed] = _scores(row)
    most = max(len(runs) for points in found.values() for runs in points.values())
    whole = {
        key: points for key, points in found.items() if all(len(runs) == most for runs in points.values())
    }
    return {
        f"{method}, learning rate {rate:g}": {
            budget: {
                "scores": {
                    name: mean_and_interval(means_by_concept(runs, name).values()) for name in LONG_COLUMNS
                },
                "products": _products(runs),
                "risen_by": _paired(runs, points[min(points)], "product") if budget > min(points) else None,
                "recipe_ahead_by": _paired(whole.get((RECIPE, rate), {}).get(budget, {}), runs, "product"),
            }
            for budget, runs in points.items()
        }
        for (method, rate), points in whole.items()
    }


def long_as_markdown(table: dict) -> str:
    """A line for each method, learning rate and budget."""
    lines = []
    for name, points in table.items():
        method, rate = name.split(", learning rate ")
        for budget, row in points.items():
            scores = [_cell(row["scores"][column]) for column in LONG_COLUMNS]
            ahead = "" if method == RECIPE else _cell(row["recipe_ahead_by"])
            settings = _settings(float(rate), budget)
            lines.append([LABELS[method], settings, *scores, _cell(row["risen_by"]), ahead])
    head = ["", "learning rate, passes", *LONG_COLUMNS.values(), "risen by", "D-OPSD is ahead by"]
    return _markdown(head, lines)


def make_health_report(part: str) -> dict:
    """Of "health_fit", which rules are fitted to, or "health": the best checkpoint, and warnings, by rate."""
    by_rate = defaultdict(lambda: defaultdict(list))
    for row in read_rows():
        job = job_of(row)
        if job.part == part:
            by_rate[job.learning_rate][job.key].append(row)
    return {
        str(rate): {
            eyes: {
                "best_checkpoint": judge_rule(runs.values(), eyes, product),
                "warnings": judge_warnings(chain(*runs.values()), eyes),
            }
            for eyes in EYES
        }
        for rate, runs in sorted(by_rate.items())
    }
