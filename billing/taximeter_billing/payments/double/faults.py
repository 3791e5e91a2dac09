"""Faults planned for tests: what the next calls of a step ("POST /v1/invoices") meet."""

from collections import defaultdict
from enum import StrEnum


class Fault(StrEnum):
    """What can go wrong between us and Stripe."""

    LOST = "lost"
    """The work is done and kept, and the connection breaks within the answer."""
    CUT = "cut"
    """The connection breaks before the work."""
    FAILED = "500"
    """No work is done; the failure is kept under the key, as Stripe does."""
    FAILED_AFTER = "500-after"
    """The work is done, and yet the answer is a failure, kept under the key."""
    UNAVAILABLE = "503"
    """No work is done and nothing is kept."""
    RATE_LIMITED = "429"
    """No work is done and nothing is kept."""
    CONFLICT = "409"
    """Another request with the key is said to be in progress; nothing is done or kept."""
    STALL = "stall"
    """The request stays in progress until another one with its key has been turned away."""


class FaultPlan:
    """Faults by step, used up in order."""

    def __init__(self) -> None:
        self._planned: dict[str, list[Fault]] = defaultdict(list)

    def set(self, planned: dict[str, list[str]]) -> None:
        """Replace the plan. Raises ValueError for a fault that is none."""
        self._planned = defaultdict(list, {step: [Fault(name) for name in names] for step, names in planned.items()})

    def next(self, step: str) -> Fault | None:
        """What this call meets."""
        planned = self._planned[step]
        return planned.pop(0) if planned else None
