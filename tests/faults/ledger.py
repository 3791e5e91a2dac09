"""What was acknowledged to producers, and what must therefore stand in the warehouse and in the budgets. Pure.

Nothing here uses the meter's code: prices are multiplied out by hand, and hours, days and slots are cut from the time itself.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgspec

from taximeter_schemas import wire
from taximeter_schemas.control import ControlKind, ControlRecord
from taximeter_schemas.rate_cards import Price, RateCard
from taximeter_schemas.tenants import Tenant

CLASSES = (
    "uncached_input", "cache_read_gpu", "cache_read_cpu", "cache_read_disk", "cache_read_provider", "cache_write_5m",
    "cache_write_1h", "output", "reasoning",
)  # fmt: skip
# Whatever is summed has another prime for a factor, so that two mistakes do not make up for one another.
PRICES = {
    "m": (2_500_007, 250_007, 300_007, 350_003, 400_009, 3_125_047, 4_000_037, 10_000_019, 12_000_017),
    "n": (150_001, 75_011, 80_021, 85_009, 90_001, 160_001, 170_003, 600_011, 700_001),
}
"""Pico-units a token, in the order of CLASSES."""
UNPRICED = "unpriced"
SLOT_SECONDS = 900
Data = Mapping[str, Any]


class Usage(NamedTuple):
    """An event as it was handed to a producer."""

    event_id: str
    source: str
    time: datetime
    data: Data

    @property
    def identity(self) -> tuple[str, str, str]:
        return self.data["tenant"], self.source, self.event_id

    def tokens(self) -> tuple[int, ...]:
        """By CLASSES."""
        tokens = self.data["tokens"]
        read, write = tokens.get("cache_read", {}), tokens.get("cache_write", {})
        return (
            tokens.get("uncached_input", 0), read.get("gpu", 0), read.get("cpu", 0), read.get("disk", 0),
            read.get("provider", 0), write.get("5m", 0), write.get("1h", 0), tokens.get("output", 0), tokens.get("reasoning", 0),
        )  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        """The mapping that a producer takes."""
        envelope = {"specversion": "1.0", "id": self.event_id, "source": self.source, "type": "taximeter.usage.v1"}
        return {**envelope, "time": self.time.isoformat(), "data": dict(self.data)}

    def as_struct(self) -> wire.UsageEvent:
        """The same for a producer's hot path."""
        return wire.decode(msgspec.json.encode(self.as_json()))


def cost(usage: Usage, factor: int = 1) -> tuple[int, int] | None:
    """List and metered pico-units, or None without a price. `factor` multiplies every price of the card."""
    prices = PRICES.get(usage.data["model"])
    if prices is None:
        return None
    counts = usage.tokens()
    reasoning = counts[8]
    output = (counts[7] - reasoning) * prices[7] + reasoning * prices[8]
    listed = sum(counts[:7]) * prices[0] + output
    metered = sum(count * price for count, price in zip(counts[:7], prices[:7], strict=True)) + output
    return listed * factor, metered * factor


@dataclass
class Cell:
    """Sums over some events. The hash does not depend on their order, and two of the same event do not cancel out."""

    events: int = 0
    tokens: list[int] = field(default_factory=lambda: [0] * len(CLASSES))
    list_pico: int = 0
    metered_pico: int = 0
    hash: int = 0

    def add(self, usage: Usage, listed: int, metered: int) -> None:
        self.events += 1
        self.tokens = [before + more for before, more in zip(self.tokens, usage.tokens(), strict=True)]
        self.list_pico += listed
        self.metered_pico += metered
        self.hash = (self.hash + row_hash(usage, listed, metered)) % 2**64

    @property
    def sums(self) -> tuple[int, ...]:
        """All but the hash: what a rollup holds."""
        return (self.events, *self.tokens, self.list_pico, self.metered_pico)


def row_hash(usage: Usage, listed: int, metered: int) -> int:
    """The same as ROW_HASH in SQL."""
    micros = (usage.time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    tenant, source, event_id = usage.identity
    tags = (tenant, source, event_id, micros, usage.data["feature"], usage.data["model"])
    text = "|".join(map(str, (*tags, *usage.tokens(), listed, metered)))
    return int.from_bytes(hashlib.md5(text.encode(), usedforsecurity=False).digest()[:8], "little")


_PARTS = (
    "tenant", "source", "event_id", "toString(toUnixTimestamp64Micro(time))", "feature", "model",
    *(f"toString({name})" for name in (*CLASSES, "list_pico", "metered_pico")),
)  # fmt: skip
ROW_HASH = f"reinterpretAsUInt64(substring(MD5(concatWithSeparator('|', {', '.join(_PARTS)})), 1, 8))"


@dataclass(frozen=True)
class Owed:
    """What must stand: raw cells by tenant and hour, rollups by (tenant, feature, model, hour or day), spend by slot."""

    rated: dict[tuple[str, datetime], Cell]
    unrated: dict[tuple[str, datetime], Cell]
    hourly: dict[tuple[str, str, str, datetime], tuple[int, ...]]
    daily: dict[tuple[str, str, str, datetime], tuple[int, ...]]
    spend: dict[tuple[str, str, str, int], tuple[int, int]]


def owe(counted: Iterable[Usage], factors: Mapping[tuple[str, str, str], int] | None = None) -> Owed:
    """What the counted events (each identity once) come to. `factors` says whose price was multiplied."""
    rated: dict[tuple[str, datetime], Cell] = defaultdict(Cell)
    unrated: dict[tuple[str, datetime], Cell] = defaultdict(Cell)
    by_hour: dict[tuple[str, str, str, datetime], Cell] = defaultdict(Cell)
    by_day: dict[tuple[str, str, str, datetime], Cell] = defaultdict(Cell)
    spend: dict[tuple[str, str, str, int], list[int]] = defaultdict(lambda: [0, 0])
    for usage in counted:
        tenant, feature, model = (str(usage.data[name]) for name in ("tenant", "feature", "model"))
        hour = usage.time.replace(minute=0, second=0, microsecond=0)
        amounts = cost(usage, (factors or {}).get(usage.identity, 1))
        if amounts is None:
            unrated[tenant, hour].add(usage, 0, 0)
            continue
        for cell in (
            rated[tenant, hour],
            by_hour[tenant, feature, model, hour],
            by_day[tenant, feature, model, hour.replace(hour=0)],
        ):
            cell.add(usage, *amounts)
        second = int(usage.time.timestamp())
        told = spend[tenant, feature, model, second - second % SLOT_SECONDS]
        told[0] += amounts[1]
        told[1] += 1
    return Owed(
        dict(rated),
        dict(unrated),
        {key: cell.sums for key, cell in by_hour.items()},
        {key: cell.sums for key, cell in by_day.items()},
        {key: (amount, events) for key, (amount, events) in spend.items()},
    )


def card(tenant: str, version: int, effective_from: datetime, recorded_at: datetime, factor: int = 1) -> RateCard:
    """The card of that tenant, with every price multiplied."""
    prices = tuple(
        Price(model=model, **{name: price * factor for name, price in zip(CLASSES, of_model, strict=True)})
        for model, of_model in PRICES.items()
    )
    return RateCard(id=tenant, version=version, effective_from=effective_from, recorded_at=recorded_at, prices=prices)


def card_record(rate_card: RateCard) -> ControlRecord:
    """As it travels."""
    body = rate_card.model_dump(mode="json")
    return ControlRecord(kind=ControlKind.RATE_CARD, id=rate_card.name, body=body, recorded_at=rate_card.recorded_at)


def declared(tenants: Iterable[str], now: datetime) -> list[ControlRecord]:
    """Tenants, each with a card of its own in force since long ago."""
    since = now - timedelta(days=400)
    records = []
    for name in tenants:
        records.append(card_record(card(name, 1, since, since)))
        body = Tenant(id=name, rate_card=name).model_dump(mode="json")
        records.append(ControlRecord(kind=ControlKind.TENANT, id=name, body=body, recorded_at=since))
    return records
