"""The documents keep to what is true: links, commands, and the figures that stand in results."""

import json
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from benchmarks import cards
from dopsd_app import __version__
from dopsd_app.cli import _parser
from dopsd_app.config import OBJECTIVES, TrainConfig, parse_setting

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README, METHOD = ROOT / "README.md", ROOT / "docs" / "method.md"
DOCUMENTS = sorted(
    path for place in ("*", "docs/*", "benchmarks/*", "assets/**/*") for path in ROOT.glob(f"{place}.md")
)
COMMAND = re.compile(r"python -m dopsd_app\b([^`\n]*)")
README_BYTES = 8192


def text_of(path):
    return path.read_text(encoding="utf-8")


def read_result(name):
    return json.loads(text_of(RESULTS / f"{name}.json"))


def anchors_of(path):
    """What GitHub names the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", text_of(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def ids(paths):
    return [path.relative_to(ROOT).as_posix() for path in paths]


def test_the_readme_is_short():
    assert README.stat().st_size <= README_BYTES
    assert {README, METHOD, ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"} <= set(DOCUMENTS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids(DOCUMENTS))
def test_every_link_within_the_repository_leads_somewhere(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(document)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (document.parent / name) if name else document
        assert file.resolve().is_relative_to(ROOT) and file.exists(), target
        assert not anchor or anchor in anchors_of(file), target


def commands_of(document):
    """Every command line that a document shows."""
    for found in COMMAND.finditer(text_of(document)):
        yield shlex.split(found[1], comments=True)


COMMANDS = [command for document in DOCUMENTS for command in commands_of(document)]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_every_command_that_is_shown_is_understood(arguments):
    if set(arguments) & {"--help", "--version"}:
        with pytest.raises(SystemExit, match="0"):
            _parser().parse_args(arguments)
        return
    options = _parser().parse_args(arguments)
    for setting in getattr(options, "set", ()):
        parse_setting(setting)


def test_commands_are_shown_at_all():
    assert {command[0] for command in COMMANDS} >= {"train", "generate", "preview", "download", "--version"}


def test_settings_and_objectives_that_are_named_are_there():
    named = re.findall(r"^\| `(\w+)` \|", text_of(METHOD), re.MULTILINE)
    assert {"loss", "rollout_steps"} <= set(named)
    assert all(hasattr(TrainConfig(), name) for name in named)
    other = set(re.findall(r"`(?:--set objective=)?(\w+)`", text_of(ROOT / "docs" / "api.md")))
    assert set(OBJECTIVES) - {"dopsd"} <= other


# --- figures


def test_the_readmes_figures_are_the_files():
    readme = text_of(README)
    assert f"took {read_result('first_run')['seconds']:.0f} s on two cores" in readme
    rows = {
        "base": "nothing: the base alone",
        "dopsd_ema": "D-OPSD",
        "sft": "ordinary fine-tuning, stopped at its best",
    }
    for name, label in rows.items():
        mean = {
            key: score["mean"]
            for key, score in read_result("method")["test"][name]["scores"].items()
            if score
        }
        shown = f"{mean['fidelity']:.0%} | {mean['following']:.0%}".replace("%", " %")
        assert f"| {label} | {shown} | {mean['quality']:.2f} |" in readme
    assert f"{mean_takeover():.0%} show the learned one".replace("%", " %") in " ".join(readme.split())


def test_the_tables_of_cards_are_what_is_planned_now():
    """Whoever changes a formula makes them anew: `python -m benchmarks.cards`."""
    planned = read_result("cards")["rows"]
    assert planned == cards.rows()
    assert cards.table(planned) in text_of(cards.DOCUMENT)
    readme = text_of(README)
    for name, size in {(row["card"], row["card_gb"]) for row in planned}:
        hours = {(row["base"], row["resolution"]): row["hours"] for row in planned if row["card"] == name}
        shown = [hours[base, side] for base in ("Z-Image-Turbo", "FLUX.2 klein 4B") for side in (512, 1024)]
        assert f"| {name}, {size} GB | {' | '.join(f'{each:.1f}' for each in shown)} |" in readme


def mean_takeover():
    return read_result("method")["test"]["dopsd_ema"]["scores"]["takeover"]["mean"]


def test_the_summary_names_every_result_and_what_made_it():
    summary = text_of(ROOT / "benchmarks" / "README.md").partition("\n## ")[0]
    for name in re.findall(r"`(\w+\.jsonl?)`", summary):
        assert (RESULTS / name).exists(), name
    assert all(f"`{file.name}`" in summary for file in RESULTS.glob("*.json"))
    rows = re.findall(r"^\| .+ \| .+ \| `(\w+)\.json`.* \| `([\w.]+)[^|]*` \| .+ \|$", summary, re.MULTILINE)
    assert len(rows) == sum(line.startswith("| ") for line in summary.splitlines()) - 2
    for name, module in rows:
        assert find_spec(module), module
        assert f"python -m {module}" in read_result(name)["command"]


# --- what other programs read


def test_versions_agree():
    requirements = dict(
        re.findall(r"^([\w-]+)(?:\[\w+\])?==(.+)$", text_of(ROOT / "requirements.txt"), re.MULTILINE)
    )
    front = yaml.safe_load(text_of(README).split("---\n")[1])
    assert front["sdk_version"] == requirements["gradio"]
    assert (ROOT / front["app_file"]).exists()
    assert f"torch\n{requirements['torch']} " in text_of(ROOT / "docs" / "windows.md").replace(
        "torch ", "torch\n"
    )
    citation = yaml.safe_load(text_of(ROOT / "CITATION.cff"))
    assert citation["version"] == __version__
    assert citation["preferred-citation"]["url"].endswith(OBJECTIVES["dopsd"].paper)
    assert f"## [{__version__}]" in text_of(ROOT / "CHANGELOG.md")


def test_every_way_to_check_uses_the_tools_that_are_pinned():
    pinned = re.findall(r"^([\w-]+)==", text_of(ROOT / "requirements-dev.txt"), re.MULTILINE)
    hooks = yaml.safe_load(text_of(ROOT / ".pre-commit-config.yaml"))["repos"]
    assert {repository["repo"] for repository in hooks} == {"local"}
    entries = [hook["entry"].split()[0] for repository in hooks for hook in repository["hooks"]]
    checks = text_of(ROOT / ".ci" / "run")
    assert {"ruff", "import-linter"} <= set(pinned)
    assert all(entry in checks for entry in entries)
    steps = yaml.safe_load(text_of(ROOT / ".github" / "workflows" / "ci.yml"))["jobs"]["check"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
