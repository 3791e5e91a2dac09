"""Load from real UsageProducers: seeded events, and a note of each that was acknowledged."""

import random
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Self

from taximeter_producers import Safe, SpoolFullError, UsageProducer
from tests.faults.ledger import PRICES, UNPRICED, Usage

FLUSH_SECONDS_MAX = 120.0


@dataclass
class Events:
    """Makes events for some tenants; the same seed makes the same ones around `now`."""

    tenants: tuple[str, ...]
    now: datetime
    random: random.Random
    made: int = 0

    def event(self, *, time: datetime | None = None, tenant: str | None = None, model: str | None = None) -> Usage:
        """The next one: of the last two hours, one in twenty without a price, where nothing else is said."""
        self.made += 1
        number = self.random.randrange
        output = 1 + number(900)
        tokens: dict[str, Any] = {
            "uncached_input": number(6_000), "output": output, "reasoning": number(output),
            "cache_read": {tier: number(3_000) for tier in ("gpu", "cpu", "disk", "provider")},
            "cache_write": {"5m": number(700), "1h": number(300)},
        }  # fmt: skip
        data = {
            "tenant": tenant or self.random.choice(self.tenants),
            "feature": self.random.choice(("chat", "search", "agents")),
            "model": model or (UNPRICED if number(20) == 0 else self.random.choice(sorted(PRICES))),
            "tokens": tokens,
        }
        moment = time or self.now - timedelta(microseconds=number(2 * 3_600_000_000))
        return Usage(f"e{self.made}", "svc", moment, data)


@dataclass
class Acknowledged:
    """What was said to be safe, in the order in which it was said."""

    usages: list[Usage] = field(default_factory=list)
    safe: dict[Safe, int] = field(default_factory=lambda: dict.fromkeys(Safe, 0))
    failed: list[tuple[Usage, BaseException]] = field(default_factory=list)
    _changed: threading.Lock = field(default_factory=threading.Lock)

    def note(self, usage: Usage, outcome: "Future[Safe]") -> None:
        """Called by the producer's thread."""
        with self._changed:
            error = outcome.exception()
            if error is not None:
                self.failed.append((usage, error))
            else:
                self.usages.append(usage)
                self.safe[outcome.result()] += 1


class Load:
    """One real producer, and the note of what it acknowledged."""

    def __init__(
        self, bootstrap_servers: str, spool_dir: Path, acknowledged: Acknowledged, name: str = "svc", **options: Any
    ) -> None:
        self.acknowledged = acknowledged
        self.refused = 0
        self.producer = UsageProducer(
            bootstrap_servers=bootstrap_servers, producer_id=name, spool_dir=spool_dir, **options
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.producer.close(FLUSH_SECONDS_MAX)

    def send(self, usage: Usage, fast: bool = False) -> bool:
        """Hand it over, as a mapping or as the hot path's struct. False when the spool is full: then it was not taken."""
        try:
            outcome = self.producer.submit(usage.as_struct() if fast else usage.as_json())
        except SpoolFullError:
            self.refused += 1
            return False
        outcome.add_done_callback(lambda done: self.acknowledged.note(usage, done))
        return True

    def send_all(self, usages: list[Usage]) -> None:
        """Hand all of them over; every one must be taken."""
        for usage in usages:
            assert self.send(usage), "the spool is full"

    def flush(self) -> None:
        """Wait until each is acknowledged."""
        assert self.producer.flush(FLUSH_SECONDS_MAX) == 0
