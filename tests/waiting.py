"""Waiting for other processes: until something holds, never for a fixed time."""

import time
from collections.abc import Callable

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
