"""The installed vLLM has all that the plugin holds on to, and one that has not is told by name."""

import subprocess

import pytest

from tests.vllm.worker_process import PYTHON

pytestmark = pytest.mark.vllm

_CHECK = """
import vllm.v1.engine.output_processor as processors
from taximeter_inference.vllm.drift import TESTED_VERSIONS, check_vllm
from taximeter_inference.vllm import DriftError
version = check_vllm()
assert version.startswith(TESTED_VERSIONS), version
del processors.OutputProcessor._update_stats_from_finished
try:
    check_vllm()
except DriftError as error:
    print(error)
"""


def test_this_release_is_known_and_drift_is_told() -> None:
    """In the environment of the suite."""
    checked = subprocess.run([PYTHON, "-c", _CHECK], capture_output=True, text=True, timeout=300, check=False)
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.strip().endswith("OutputProcessor._update_stats_from_finished is gone")
