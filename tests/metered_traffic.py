"""Seeded traffic for the meter: good events, repeats, conflicts, every kind of bad message, and what each must become."""

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from taximeter_schemas.control import ControlKind, ControlRecord
from taximeter_schemas.rate_cards import Price, RateCard
from taximeter_schemas.rejections import EVENT_BYTES_MAX
from taximeter_schemas.tenants import Tenant

PRICES = {"m": (2_500_000, 250_000, 3_125_000, 10_000_000), "n": (150_000, 75_000, 150_000, 600_000)}
"""Pico-units a token: uncached input, read from the GPU's cache, written for five minutes, output."""
UNPRICED = "unpriced"
UNDECODED = {"malformed_json", "missing_tag", "absurd_tokens", "inconsistent", "invalid_event", "too_large"}
BAD = sorted(UNDECODED | {"unknown_tenant", "time_out_of_range"})


@dataclass(frozen=True)
class Row:
    """What the warehouse must hold of a message."""

    disposition: str
    reason: str
    tenant: str
    list_pico: int = 0
    metered_pico: int = 0


@dataclass
class Sent:
    """One message; the broker's acknowledgement fills in where it stands."""

    event_id: str
    payload: bytes
    data: dict[str, Any]
    planted: str = ""
    partition: int = -1
    offset: int = -1

    @property
    def place(self) -> tuple[int, int]:
        return self.partition, self.offset


@dataclass
class Traffic:
    """Makes messages for two tenants; the same seed makes the same ones, but for the times around `now`."""

    tenants: tuple[str, str]
    now: datetime
    random: random.Random
    made: int = 0
    countable: list[Sent] = field(default_factory=list)

    def messages(self, count: int) -> list[Sent]:
        """The next messages. Each hundred has one of every bad kind, repeats and conflicts among good ones."""
        planted = [*BAD, "time_ahead"] * max(1, count // 100)
        kinds = [*planted, *["repeat", "conflict", UNPRICED] * (count // 30)]
        kinds += ["good"] * (count - len(kinds))
        self.random.shuffle(kinds)
        return [self._message(kind) for kind in kinds]

    def _message(self, kind: str) -> Sent:
        if kind in {"repeat", "conflict"} and self.countable:
            before = self.random.choice(self.countable)
            data = before.data
            if kind == "conflict":
                data = data | {"tokens": data["tokens"] | {"output": data["tokens"]["output"] + 1}}
            return Sent(before.event_id, self._event(before.event_id, data, self._time()), data)
        self.made += 1
        event_id = f"e{self.made}"
        data = self._data(UNPRICED if kind == UNPRICED else self.random.choice(sorted(PRICES)))
        if kind in BAD or kind == "time_ahead":
            reason = "time_out_of_range" if kind == "time_ahead" else kind
            return Sent(event_id, self._bad(kind, event_id, data), data, reason)
        sent = Sent(event_id, self._event(event_id, data, self._time()), data)
        self.countable.append(sent)
        return sent

    def _data(self, model: str) -> dict[str, Any]:
        number = self.random.randrange
        tokens = {
            "uncached_input": number(5_000), "cache_read": {"gpu": number(2_000)}, "cache_write": {"5m": number(500)},
            "output": 1 + number(800),
        }  # fmt: skip
        tags = {"tenant": self.random.choice(self.tenants), "feature": self.random.choice(["chat", "search"])}
        return {**tags, "model": model, "tokens": tokens, "lease_id": f"lease-{number(3)}"}

    def _time(self) -> datetime:
        return self.now - timedelta(seconds=self.random.randrange(3 * 86_400))

    def _event(self, event_id: str, data: dict[str, Any], time: datetime) -> bytes:
        envelope = {"specversion": "1.0", "id": event_id, "source": "svc", "type": "taximeter.usage.v1"}
        return json.dumps({**envelope, "time": time.isoformat(), "data": data}).encode()

    def _bad(self, kind: str, event_id: str, data: dict[str, Any]) -> bytes:
        tokens, time = data["tokens"], self._time()
        match kind:
            case "malformed_json":
                return self._event(event_id, data, time)[:-9] + b"\xff"
            case "missing_tag":
                data = {name: value for name, value in data.items() if name != "feature"}
            case "absurd_tokens":
                data = data | {"tokens": tokens | {"output": 100_000_001}}
            case "inconsistent":
                data = data | {"tokens": tokens | {"total": 1}}
            case "invalid_event":
                data = data | {"hop": -1}
            case "too_large":
                data = data | {"attributes": {"a": "x" * EVENT_BYTES_MAX}}
            case "unknown_tenant":
                data["tenant"] = f"{data['tenant']}-unknown"
            case "time_out_of_range":
                time = self.now - timedelta(days=60)
            case "time_ahead":
                time = self.now + timedelta(days=2)
        return self._event(event_id, data, time)


def declared(tenants: Iterable[str], now: datetime) -> list[ControlRecord]:
    """Control records of the tenants and of a rate card of their own, in force since long ago."""
    card_id = next(iter(tenants))
    prices = tuple(
        Price(model=model, uncached_input=full, cache_read_gpu=read, cache_write_5m=written, output=output)
        for model, (full, read, written, output) in PRICES.items()
    )
    since = now - timedelta(days=365)
    card = RateCard(id=card_id, version=1, effective_from=since, recorded_at=since, prices=prices)
    records = [
        ControlRecord(kind=ControlKind.RATE_CARD, id=card.name, body=card.model_dump(mode="json"), recorded_at=now)
    ]
    for tenant in (Tenant(id=name, rate_card=card_id) for name in tenants):
        body = tenant.model_dump(mode="json")
        records.append(ControlRecord(kind=ControlKind.TENANT, id=tenant.id, body=body, recorded_at=now))
    return records


def judge(sent: Iterable[Sent]) -> dict[tuple[int, int], Row]:
    """What each message must become, by its place; worked out from the order in the log, without the meter's code."""
    rows: dict[tuple[int, int], Row] = {}
    counted: dict[tuple[str, str], dict[str, Any]] = {}
    for message in sorted(sent, key=lambda message: message.place):
        tenant = message.data["tenant"]
        identity = (tenant, message.event_id)
        if message.planted:
            row = Row("rejected", message.planted, "" if message.planted in UNDECODED else tenant)
        elif identity not in counted:
            counted[identity] = message.data
            row = _costed(message.data)
        elif counted[identity] == message.data:
            row = Row("duplicate", "", tenant)
        else:
            row = Row("rejected", "conflict", tenant)
        rows[message.place] = row
    return rows


def _costed(data: dict[str, Any]) -> Row:
    if data["model"] == UNPRICED:
        return Row("unrated", "unknown_model", data["tenant"])
    tokens = data["tokens"]
    fresh, read, written = tokens["uncached_input"], tokens["cache_read"]["gpu"], tokens["cache_write"]["5m"]
    full_price, read_price, write_price, output_price = PRICES[data["model"]]
    output = tokens["output"] * output_price
    listed = (fresh + read + written) * full_price + output
    return Row(
        "rated", "", data["tenant"], listed, fresh * full_price + read * read_price + written * write_price + output
    )


def utc_now() -> datetime:
    """The time that traffic is made around."""
    return datetime.now(UTC)
