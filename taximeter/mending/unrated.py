"""Rates later what had no price when it was counted: sends it to the meter again, which writes the rating once.

Only what has a price by now is sent; the price is the one that held at the event's own time, by whatever card is known today.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any

from clickhouse_connect.driver.client import Client

from taximeter.mending.sending import Placed, Sender, await_stored, spans
from taximeter_schemas import wire
from taximeter_schemas.control_snapshot import ControlSnapshot
from taximeter_schemas.events import Attribution, Operation, Outcome, ServiceTier
from taximeter_schemas.late_ratings import LateRating, encode
from taximeter_schemas.rating import Rated
from taximeter_sql import query
from taximeter_streams.meter.pricing import Pricing

CHUNK = 5_000
"""Events sent before the meter is waited for."""

METER_TRIES = 20
METER_PAUSE_SECONDS = 0.5
"""The meter hears of a price a moment after it was published: how often, and after what pause, the first one is sent again."""


@dataclass(slots=True)
class Group:
    """Unrated events of one tenant and model, by what would become of them now: a card's name, or the reason why not."""

    tenant: str
    model: str
    verdict: str
    priced: bool
    events: int = 0
    first: datetime | None = None
    last: datetime | None = None


@dataclass(slots=True)
class LateOutcome:
    """What the meter made of late ratings. `metered_pico` by currency."""

    rated: int = 0
    rated_before: int = 0
    still_unrated: int = 0
    waiting: int = 0
    metered_pico: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, other: "LateOutcome") -> None:
        """Add what another chunk came to."""
        self.rated += other.rated
        self.rated_before += other.rated_before
        self.still_unrated += other.still_unrated
        for currency, amount in other.metered_pico.items():
            self.metered_pico[currency] += amount


def unrated_events(client: Client, tenant: str | None, model: str | None) -> Iterator[LateRating]:
    """Every event without a price, as it would be sent. Read in pages, so that what happens between them takes its time."""
    after: dict[str, object] = {"log_id": "", "partition": 0, "offset": 0}
    while True:
        parameters = {"tenant": tenant or "", "model": model or "", "limit": CHUNK, **after}
        rows = list(client.query(query("unrated_rows"), parameters=parameters, tz_mode="aware").named_results())
        yield from map(late_rating, rows)
        if len(rows) < CHUNK:
            return
        after = {name: rows[-1][name] for name in after}


def plan(client: Client, snapshot: ControlSnapshot, tenant: str | None, model: str | None) -> list[Group]:
    """What would become of the unrated events now, grouped."""
    pricing = Pricing(snapshot)
    groups: dict[tuple[str, str, str], Group] = {}
    for event in unrated_events(client, tenant, model):
        rated = pricing.rate(event)
        priced = isinstance(rated, Rated)
        verdict = rated.rate_card if isinstance(rated, Rated) else rated.reason
        key = (event.data.tenant, event.data.model, verdict)
        group = groups.setdefault(key, Group(*key, priced))
        group.events += 1
        group.first = min(group.first or event.time, event.time)
        group.last = max(group.last or event.time, event.time)
    return sorted(groups.values(), key=lambda group: (group.tenant, group.model, group.verdict))


def rate_later(
    client: Client,
    sender: Sender,
    log_id: str,
    snapshot: ControlSnapshot,
    tenant: str | None = None,
    model: str | None = None,
    *,
    wait_seconds: float = 60.0,
    progress: Callable[[int], None] = lambda _sent: None,
) -> LateOutcome:
    """Send whatever has a price by now, and report what the meter made of it. Killed, or run twice, it rates each event once."""
    pricing, outcome, sent = Pricing(snapshot), LateOutcome(), 0
    priced = (event for event in unrated_events(client, tenant, model) if isinstance(pricing.rate(event), Rated))
    for chunk in _chunks(priced):
        tries = METER_TRIES if sent == 0 else 1
        placed, made = _sent(client, sender, log_id, chunk, wait_seconds, tries)
        sent += len(chunk)
        progress(sent)
        if made is None:
            outcome.waiting += len(placed)
        else:
            outcome.add(made)
    return outcome


def _sent(
    client: Client, sender: Sender, log_id: str, chunk: list[LateRating], wait_seconds: float, tries: int
) -> tuple[list[Placed], LateOutcome | None]:
    """Send a chunk and wait; again when the meter has not heard of the price yet. No outcome: it has not stored it in time."""
    while True:
        placed = sender.send((event.id.encode(), encode(event)) for event in chunk)
        if not await_stored(client, log_id, placed, wait_seconds):
            return placed, None
        made = _count(client, log_id, placed)
        tries -= 1
        if not made.still_unrated or not tries:
            return placed, made
        time.sleep(METER_PAUSE_SECONDS)


def _chunks(events: Iterator[LateRating]) -> Iterator[list[LateRating]]:
    """The first one alone, to see that the meter knows the price, and then many at a time."""
    if first := list(islice(events, 1)):
        yield first
    while chunk := list(islice(events, CHUNK)):
        yield chunk


def _count(client: Client, log_id: str, placed: list[Placed]) -> LateOutcome:
    outcome = LateOutcome()
    for partition, (first, last) in spans(placed).items():
        parameters = {"log_id": log_id, "partition": partition, "first": first, "last": last}
        for rated, still, currency, events, metered in client.query(
            query("late_ratings"), parameters=parameters
        ).result_rows:
            if rated:
                outcome.rated += events
                outcome.metered_pico[currency] += metered
            elif still:
                outcome.still_unrated += events
            else:
                outcome.rated_before += events
    return outcome


def late_rating(row: dict[str, Any]) -> LateRating:
    """A stored row as the event that it was. Its lease is not named: what that held was given back long ago."""
    tokens = wire.Tokens(
        row["uncached_input"],
        wire.CacheRead(*(row[f"cache_read_{tier}"] for tier in ("gpu", "cpu", "disk", "provider"))),
        wire.CacheWrite(row["cache_write_5m"], row["cache_write_1h"]),
        row["output"],
        row["reasoning"],
    )
    cache = wire.Cache(
        row["pool"] or None, row["block_size"], row["hit_blocks"], list(row["blocks"]), Attribution(row["attribution"])
    )
    worker_id = row["worker_id"]
    data = wire.UsageData(
        tenant=row["tenant"],
        feature=row["feature"],
        model=row["model"],
        tokens=tokens,
        adapter=row["adapter"] or None,
        operation=Operation(row["operation"]),
        request_id=row["request_id"] or None,
        root_request_id=row["root_request_id"] or None,
        hop=row["hop"],
        attempt=row["attempt"],
        outcome=Outcome(row["outcome"]),
        cache=cache,
        timing=wire.Timing(row["queue_ms"], row["ttft_ms"], row["total_ms"]),
        worker=wire.Worker(worker_id, row["worker_sequence"], row["gpu_seconds"]) if worker_id else None,
        service_tier=ServiceTier(row["service_tier"]),
        attributes=dict(row["attributes"]),
    )
    return LateRating(id=row["event_id"], source=row["source"], time=row["time"], data=data)
