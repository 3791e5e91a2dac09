"""Programs that run in vLLM's environment and say what they found, as one line of JSON behind a mark."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taximeter.demo.vllm_worker import START_SECONDS_MAX
from tests.vllm.worker_process import PYTHON

MARK = "SAID "


def said_by(name: str, *words: object, environment: Mapping[str, str] = os.environ) -> Any:
    """What a program beside this file said, once it has ended well."""
    command = [str(PYTHON), str(Path(__file__).with_name(name)), *map(str, words)]
    ran = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=START_SECONDS_MAX, check=False
    )
    assert ran.returncode == 0, ran.stderr[-3_000:]
    return json.loads(next(line for line in ran.stdout.splitlines() if line.startswith(MARK))[len(MARK) :])
