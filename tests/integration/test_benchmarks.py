"""The benchmark runs from end to end on tiny counts. What it measures is not looked at."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import report

_ROOT = Path(__file__).parents[2]


@pytest.mark.kafka
def test_the_benchmark_runs_and_its_figures_make_tables() -> None:
    command = [sys.executable, "-m", "tests.benchmarks", "--quick", "--json", "--only", "throughput", "--only", "emit"]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    (run,) = found["throughput"]["runs"]["ours"]
    assert run["events"] > 0
    assert [one["refused"] for runs in found["emit"].values() for one in runs] == [0, 0, 0]
    table = report.render(found, report.machine())
    page = "\n".join(f"before\n<!-- {name} -->old<!-- /{name} -->\nafter" for name in ("throughput", "emit"))
    written = report.replaced(page, found, table)
    assert "old" not in written
    lines = written.splitlines()
    assert lines.count("before") == lines.count("after") == 2
