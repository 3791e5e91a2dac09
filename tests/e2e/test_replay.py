"""`taximeter replay` as its user runs it: a trace in, every law held, and the same replay again changes nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.stack
SECONDS_MAX = 240


def replay(trace: Path, data: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "taximeter",
        "replay",
        "--trace",
        str(trace),
        "--data",
        str(data),
        "--json",
        *options,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)


def test_a_trace_is_replayed_and_a_second_run_changes_nothing(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"timestamp": number, "input_length": 1_100, "output_length": 7, "hash_ids": [number % 3, 10 + number % 5]}
        for number in range(30)
    ]
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first = replay(trace, tmp_path / "data", "--tenants", "3")
    assert first.returncode == 0, first.stderr[-3000:]
    report = json.loads(first.stdout)
    assert (report["served"], report["prompt_tokens"], report["output_tokens"]) == (30, 33_000, 210)
    assert report["cached_tokens"] > 0
    assert report["clean"] is True
    second = replay(trace, tmp_path / "data", "--tenants", "3")
    assert second.returncode == 0, second.stderr[-3000:]
    assert json.loads(second.stdout) == report


def test_a_file_that_is_no_trace_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("a,b\n1,2\n")
    refused = replay(trace, tmp_path / "data")
    assert refused.returncode == 2
    assert "neither Mooncake JSONL nor an Azure CSV" in refused.stderr
