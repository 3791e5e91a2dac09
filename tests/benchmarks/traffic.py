"""The events of the benchmarks: seeded, of the published schema, some 430 bytes, from 500 tenants; and what is declared."""

import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

from taximeter_schemas.control import ControlKind, ControlRecord
from taximeter_schemas.rate_cards import Price, RateCard
from taximeter_schemas.tenants import Tenant

TENANTS = 500
MODELS = ("llama-3-70b", "qwen-2.5-7b", "mixtral-8x7b")
FEATURES = ("chat", "search", "agent")

_EVENT = (
    '{{"specversion":"1.0","id":"{id:032x}","source":"gateway-{gateway}","type":"taximeter.usage.v1","time":"{time}Z",'
    '"data":{{"tenant":"tenant-{tenant:04d}","feature":"{feature}","model":"{model}","operation":"chat",'
    '"tokens":{{"uncached_input":{fresh},"cache_read":{{"gpu":{cached}}},"output":{output}}},'
    '"timing":{{"ttft_ms":{ttft},"total_ms":{total}}},'
    '"worker":{{"id":"vllm-{worker}:1f9c2b7e","sequence":{sequence}}},"lease_id":"lease-{tenant:06x}"}}}}'
)


def events(count: int, seed: int, now: datetime) -> Iterator[tuple[str, bytes]]:
    """That many events of the two minutes before `now`: id and bytes. The same arguments make the same events."""
    draw = random.Random(seed)
    number, bits, pick = draw.random, draw.getrandbits, draw.choice
    for sequence in range(count):
        tenant = int(number() * TENANTS)
        moment = now - timedelta(microseconds=int(number() * 120_000_000))
        event_id = bits(128)
        text = _EVENT.format(
            id=event_id, gateway=tenant % 8, time=moment.isoformat(timespec="microseconds")[:26], tenant=tenant,
            feature=pick(FEATURES), model=pick(MODELS), fresh=int(number() * 5_000), cached=16 * int(number() * 100),
            output=1 + int(number() * 800), ttft=round(number() * 300, 1), total=round(300 + number() * 3_000, 1),
            worker=tenant % 16, sequence=sequence,
        )  # fmt: skip
        yield f"{event_id:032x}", text.encode()


def again(made: Sequence[tuple[str, bytes]], seed: int) -> Iterator[tuple[str, bytes]]:
    """The same events under ids of their own, one `made` after the other without end: in a tenth of the time of making them."""
    bits = random.Random(seed).getrandbits
    at = made[0][1].index(made[0][0].encode())
    parts = [(payload[:at], payload[at + 32 :]) for _, payload in made]
    while True:
        for head, tail in parts:
            event_id = f"{bits(128):032x}"
            yield event_id, head + event_id.encode() + tail


def declarations(now: datetime) -> list[ControlRecord]:
    """The tenants, and the rate card that all of them have."""
    since = now - timedelta(days=365)
    prices = tuple(
        Price(model=model, uncached_input=2_500_000, cache_read_gpu=250_000, output=10_000_000) for model in MODELS
    )
    card = RateCard(version=1, effective_from=since, recorded_at=since, prices=prices)
    records = [
        ControlRecord(kind=ControlKind.RATE_CARD, id=card.name, body=card.model_dump(mode="json"), recorded_at=now)
    ]
    for number in range(TENANTS):
        tenant = Tenant(id=f"tenant-{number:04d}", rate_card=card.id)
        body = tenant.model_dump(mode="json")
        records.append(ControlRecord(kind=ControlKind.TENANT, id=tenant.id, body=body, recorded_at=now))
    return records


def utc_now() -> datetime:
    """The time that events are made around."""
    return datetime.now(UTC)
