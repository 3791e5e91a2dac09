"""Waiting for other processes: until something holds, never for a fixed time."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

SECONDS_MAX = 120.0
_PAUSE_SECONDS = 0.02


def await_true(holds: Callable[[], bool], what: str | Callable[[], str], seconds_max: float = SECONDS_MAX) -> None:
    """Poll until it holds; fail the test with `what` after a generous time."""
    deadline = time.monotonic() + seconds_max
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds_max:.0f} s: {what if isinstance(what, str) else what()}")
        time.sleep(_PAUSE_SECONDS)


def freeze(pid: int) -> None:
    """SIGSTOP, and wait until no thread of the process runs: the signal alone does not stop at once one that is running."""
    os.kill(pid, signal.SIGSTOP)
    threads = Path(f"/proc/{pid}/task")
    if threads.exists():
        await_true(lambda: all(_state(thread) == "T" for thread in threads.iterdir()), "it stops")


def _state(thread: Path) -> str:
    return (thread / "stat").read_text().rpartition(")")[2].split()[0]
