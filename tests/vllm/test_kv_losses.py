"""KV events that are lost on their way, from vLLM's own publisher over real sockets."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.vllm.worker_process import PYTHON, START_SECONDS_MAX

pytestmark = pytest.mark.vllm


def test_lost_messages_are_had_again_or_what_they_told_of_is_inferred() -> None:
    """A gap is filled from vLLM's memory; where that is too short, the request then under way is inferred, the next is exact."""
    program = Path(__file__).with_name("kv_losses.py")
    ran = subprocess.run([PYTHON, program], capture_output=True, text=True, timeout=START_SECONDS_MAX, check=False)
    assert ran.returncode == 0, ran.stderr[-3_000:]
    found = json.loads(next(line for line in ran.stdout.splitlines() if line.startswith("FOUND "))[6:])
    assert found == {"enough": ["engine", "engine"], "too few": ["inferred", "engine"]}
