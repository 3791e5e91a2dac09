"""When a delivery that failed is tried again: soon at first, then ever more slowly, for three days."""

from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True, slots=True)
class RetryStrategy:
    """Exponential back-off: `first_wait` after the first attempt, `factor` times as long after each, `wait_max` at most.

    After `give_up_after`, counted from the first attempt, a delivery has failed.
    """

    first_wait: timedelta = timedelta(seconds=1)
    factor: int = 3
    wait_max: timedelta = timedelta(hours=2)
    give_up_after: timedelta = timedelta(days=3)

    def next_attempt(self, attempts: int, first_attempt_at: datetime, now: datetime) -> datetime | None:
        """When to try again after `attempts` (at least 1) failed ones; None to give up. The last try falls on the deadline."""
        deadline = first_attempt_at + self.give_up_after
        if now >= deadline:
            return None
        return min(now + self._wait(attempts), deadline)

    def _wait(self, attempts: int) -> timedelta:
        wait = self.first_wait
        for _ in range(attempts - 1):
            if wait >= self.wait_max:
                break
            wait *= self.factor
        return min(wait, self.wait_max)
