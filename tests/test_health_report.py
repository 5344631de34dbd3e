"""The report on the rule for the best checkpoint, on lines that are few enough to reckon by hand."""

import json

import pytest

from benchmarks import rows as measured
from benchmarks.health_report import judge_rule, judge_warnings
from benchmarks.rows import Job
from benchmarks.tables import make_health_report

pytestmark = pytest.mark.benchmark

BASE = {"concept": 0.0, "following": 1.0, "drift": 0.0, "quality": 1.0}


def line(passes, concept, worth, drift=0.0, quality=1.0, **scores):
    lora = {"concept": concept, "following": 1.0, "drift": drift, "quality": quality}
    return {
        "passes": passes,
        "health": {"eyes": {"base": BASE, "lora": lora}},
        "scores": {"worth": worth, **scores},
    }


def test_the_rules_choice_stands_between_the_last_and_the_best():
    runs = [
        [line(100, 0.5, 0.4), line(200, 0.9, 0.6), line(300, 0.7, 0.5)],
        [line(100, 0.5, 0.2), line(200, 0.3, 0.4), line(300, 0.6, 0.3)],
    ]
    report = judge_rule(runs, "eyes", lambda scores: scores["worth"])
    assert report["runs"] == 2
    assert report["chosen_by_rule"] == pytest.approx((0.6 + 0.3) / 2)
    assert report["last"] == pytest.approx((0.5 + 0.3) / 2)
    assert report["best_there_is"] == pytest.approx((0.6 + 0.4) / 2)


def test_warnings_are_counted_by_what_is_really_ruined():
    rows = [
        line(1, 0.5, 0, quality=0.1, following=0.1),  # the test's own following
        line(1, 0.5, 0, quality=0.1, drift=1.5),
        line(1, 0.5, 0, drift=1.5, takeover=0.3),
        line(1, 0.5, 0),
    ]
    for row in rows:
        row["scores"] = {"following": 1.0, "quality": 0.8, "takeover": 0.2} | row["scores"]
    rows[1]["scores"]["quality"] = 0.5
    assert judge_warnings(rows, "eyes") == {"ruined: quality": 2, "taken over: drift": 1, "well: silent": 1}


def test_each_learning_rate_is_reported_for_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "ROWS", tmp_path / "rows.jsonl")
    monkeypatch.setattr(measured, "base_mark", lambda: "b")
    kept = {"following": 1.0, "takeover": 0.0}
    lines = []
    for rate, concept, fidelity in ((0.003, 0, 0.5), (0.003, 1, 0.7), (0.03, 0, 0.1)):
        shown = line(100, 0.5, 0, fidelity=fidelity, **kept)
        shown["scores"]["quality"] = 1.0
        shown["health"] = {eyes: shown["health"]["eyes"] for eyes in ("judge", "vision")}
        lines.append(shown | {"base": "b", "job": vars(Job("health", "dopsd_ema", concept, 0, rate, (100,)))})
    measured.ROWS.write_text("".join(json.dumps(shown) + "\n" for shown in lines))
    report = make_health_report("health")
    last = {rate: found["judge"]["best_checkpoint"]["last"] for rate, found in report.items()}
    assert last == {"0.003": pytest.approx(0.6), "0.03": pytest.approx(0.1)}
    assert report["0.003"]["vision"]["warnings"] == {"well: silent": 2}
