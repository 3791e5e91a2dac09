"""What the documents name is there: links, `taximeter ...` commands with options, make targets, settings, metrics."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from taximeter.cli.main import app

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "docs" / "examples" / "grafana-dashboard.json"
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`(taximeter [^`]+)`")
_FENCED = re.compile(r"```[^\n]*\n(.*?)```", re.DOTALL)
_LINE = re.compile(r"(?:^|\(|\|\s)\s*(taximeter [^#|)\n]+)", re.MULTILINE)


def documents() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in listed.split() if (ROOT / name).exists()]


DOCUMENTS = documents()


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", DOCUMENTS, ids=named)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    broken = []
    for target in _LINK.findall(page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        there = (page.parent / place).resolve() if place else page
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in anchors(there)):
            broken.append(target)
    assert broken == []


def commands(text: str) -> Iterator[str]:
    for block in _FENCED.findall(text):
        yield from _LINE.findall(block.replace("\\\n", " "))
    yield from _CODE.findall(_FENCED.sub("", text))


@cache
def command_line() -> Any:
    return typer.main.get_command(app)


def problem_of(line: str) -> str | None:
    """What of the line does not exist: a command, or an option of it. Words in capitals and values are not looked at."""
    command = command_line()
    for word in shlex.split(line.replace("...", " "), posix=True)[1:]:
        if hasattr(command, "commands") and not word.startswith("-"):
            names = [part.strip(",") for part in word.split("/")]  # "up`/`run", "list|show"
            found = [command.get_command(None, name) for name in names]
            if None in found:
                return f"no command {word!r}"
            command = found[0]
        elif word.startswith("--") and word != "--":
            name = word.partition("=")[0].strip("[],")
            known = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
            if name not in known | {"--help"}:
                return f"no option {name}"
    return None


@pytest.mark.parametrize("page", DOCUMENTS, ids=named)
def test_every_command_exists_with_its_options(page: Path) -> None:
    found = {line: problem_of(line) for line in commands(page.read_text())}
    assert {line: problem for line, problem in found.items() if problem} == {}


@pytest.mark.parametrize("page", DOCUMENTS, ids=named)
def test_every_make_target_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = page.read_text()
    wanted = set(re.findall(r"`make ([a-z-]+)", text))
    for block in _FENCED.findall(text):
        wanted |= set(re.findall(r"^make ([a-z-]+)", block, re.MULTILINE))
    assert wanted <= targets


@cache
def sources() -> str:
    listing = ["git", "ls-files", "*.py", "*.sh", "*.yml", "Makefile", ".ci"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True)
    return "\n".join((ROOT / name).read_text() for name in names.stdout.split() if (ROOT / name).is_file())


@pytest.mark.parametrize("page", DOCUMENTS, ids=named)
def test_every_setting_exists(page: Path) -> None:
    known = (ROOT / "docs" / "reference" / "settings.md").read_text() + sources()
    names = set(re.findall(r"`(TAXIMETER_[A-Z_0-9]+[A-Z0-9])(?=[`= ])", page.read_text()))
    assert {name for name in names if name not in known} == set()


def metrics_of(text: str) -> set[str]:
    """The metrics that a text names, without what Prometheus' client adds to a name."""
    services = "meter|budgets|gateway|ingest|alerts|billing|reconcile"
    found = re.findall(rf"\b(taximeter_(?:{services})_[a-z_]+[a-z])\b", text)
    return {re.sub(r"_(total|bucket|sum|count|created)$", "", name) for name in found}


@pytest.mark.parametrize(
    "page", [ROOT / "docs/how-to/watch.md", ROOT / "docs/how-to/reconcile.md", DASHBOARD], ids=named
)
def test_every_metric_is_exported(page: Path) -> None:
    wanted = metrics_of(page.read_text())
    exported = {re.sub(r"_total$", "", name) for name in re.findall(r'"(taximeter_[a-z_]+)"', sources())}
    assert wanted and wanted - exported == set()


def test_the_dashboard_looks_at_every_service() -> None:
    board = json.loads(DASHBOARD.read_text())
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert all(panel["description"] and panel["targets"] for panel in panels)
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    shown = metrics_of(json.dumps(board))
    for service in ("meter", "budgets", "gateway", "ingest", "alerts", "billing", "reconcile"):
        assert any(name.startswith(f"taximeter_{service}_") for name in shown), service


def test_the_check_finds_what_does_not_exist() -> None:
    assert problem_of("taximeter invoice close --period 2026-11 --early") is None
    assert problem_of("taximeter invoice shut --period 2026-11") == "no command 'shut'"
    assert problem_of("taximeter verify INV-000001 --loud") == "no option --loud"
