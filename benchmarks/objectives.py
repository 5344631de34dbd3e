"""Does the product's own loop train what the table's rivals were measured with? One short row of it, again.

    python -m benchmarks.objectives

Nothing is added to results/method.jsonl: what stands there, and what is measured now, go side by side into
results/objectives.json.
"""

from dataclasses import asdict

from benchmarks.method import run_job
from benchmarks.record import save_result
from benchmarks.rows import base_mark, job_of, read_rows

# Not of seed 0: of that, pictures of 32 steps are drawn, which takes longer than all else.
ROW = {"part": "test", "method": "sft", "concept": 0, "seed": 1}


def main() -> None:
    (known,) = [row for row in read_rows() if row["job"].items() >= ROW.items()]
    (measured,) = run_job(job_of(known))
    apart = {name: round(measured["scores"][name] - score, 4) for name, score in known["scores"].items()}
    path = save_result(
        "objectives",
        {"base": base_mark(), "job": asdict(job_of(known))}
        | {"committed": _facts(known), "measured": _facts(measured), "apart": apart},
    )
    print(path.read_text(encoding="utf-8"))


def _facts(row: dict) -> dict:
    return {name: row[name] for name in ("passes", "steps", "seconds", "scores")}


if __name__ == "__main__":
    main()
