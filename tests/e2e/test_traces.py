"""Recorded traces of real traffic, whole, through the whole pipeline. TAXIMETER_TRACES names the folder that holds them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from taximeter.workload.traces import read_trace

pytestmark = pytest.mark.traces
FILES = ("mooncake_conversation.jsonl", "azure_llm_2023_conv.csv")
REPLAY_SECONDS_MAX = 900


@pytest.mark.parametrize("name", FILES)
def test_all_laws_hold_on_a_recorded_trace(name: str, tmp_path: Path) -> None:
    trace = Path(os.environ["TAXIMETER_TRACES"]) / name
    recorded = read_trace(trace)
    command = [
        sys.executable,
        "-m",
        "taximeter",
        "replay",
        "--trace",
        str(trace),
        "--data",
        str(tmp_path / "data"),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=REPLAY_SECONDS_MAX, check=False)
    print(done.stderr[-4000:])
    assert done.returncode == 0, done.stdout[-4000:]
    report = json.loads(done.stdout)
    assert report["clean"] is True
    assert report["sent"] == report["served"] == len(recorded)
    assert sum(tenant["rated"] for tenant in report["tenants"]) == len(recorded)
    assert report["prompt_tokens"] == sum(request.input_tokens for request in recorded)
    assert report["output_tokens"] == sum(request.output_tokens for request in recorded)
    if name.startswith("mooncake"):
        assert report["cached_tokens"] > 0
    else:
        assert report["cached_tokens"] == 0
