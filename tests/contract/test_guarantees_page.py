"""docs/guarantees.md: every test that it names is there, and every fault scenario is named."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guarantees.md").read_text()
NAMED = re.compile(r"`(test_\w+)`: `(\w+)`")


def scenarios() -> set[tuple[str, str]]:
    """File and name of each fault scenario."""
    found = set()
    for path in (ROOT / "tests" / "faults").glob("test_*.py"):
        found |= {(path.stem, name) for name in re.findall(r"^def test_(\w+)\(", path.read_text(), re.MULTILINE)}
    return found


def test_every_scenario_is_named_and_every_name_is_a_scenario() -> None:
    named = set(NAMED.findall(PAGE))
    assert named <= scenarios()
    whole_files = {"test_large_batches", "test_chaos", "test_embedded_broker"}
    assert all(name in PAGE for name in whole_files)
    assert {file_and_name for file_and_name in scenarios() if file_and_name[0] not in whole_files} == named


def test_every_file_that_it_names_is_there() -> None:
    for name in re.findall(r"`(tests/[\w/]+\.py)`", PAGE):
        assert (ROOT / name).is_file(), name
