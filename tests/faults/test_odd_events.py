"""Events that are early, late, repeated, contradicted or poisonous, and prices that change while a batch is under way."""

from collections import Counter
from datetime import UTC, datetime, timedelta, timezone

from confluent_kafka import Producer

from taximeter_producers.control import publish
from taximeter_schemas.rejections import EVENT_BYTES_MAX
from taximeter_schemas.topics import USAGE_EVENTS
from tests.faults.ledger import Usage, card, card_record
from tests.faults.yard import Yard
from tests.waiting import await_true


def refusals(yard: Yard) -> Counter[str]:
    """Rejected rows by reason."""
    rows = yard.client.query("SELECT reason, count() FROM usage_rejected GROUP BY reason").result_rows
    return Counter({str(reason): int(count) for reason, count in rows})


def month_end(now: datetime) -> datetime:
    """The first moment of this month; the one before it, where this month began a moment ago."""
    return now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def test_odd_times(yard: Yard) -> None:
    yard.meter()
    now, tick = yard.events.now, timedelta(microseconds=1)
    midnight, month = now.replace(hour=0, minute=0, second=0, microsecond=0), month_end(now)
    # The hour that a clock change repeats: the same wall time twice, an hour apart.
    summer, winter = timezone(timedelta(hours=2)), timezone(timedelta(hours=1))
    repeated = (midnight - timedelta(days=1)).replace(hour=2, minute=30, tzinfo=None)
    good = [
        now - timedelta(days=34), now + timedelta(hours=23), month, month - tick, midnight, midnight - tick,
        repeated.replace(tzinfo=summer).astimezone(UTC), repeated.replace(tzinfo=winter).astimezone(UTC),
    ]  # fmt: skip
    bad = [now - timedelta(days=60), now - timedelta(days=36), now + timedelta(days=2)]
    with yard.load() as load:
        taken = [yard.events.event(time=time) for time in good for _ in range(20)]
        refused = [yard.events.event(time=time) for time in bad for _ in range(10)]
        mixed = taken + refused
        yard.random.shuffle(mixed)
        load.send_all(mixed)
    yard.settle()
    assert refusals(yard) == Counter(time_out_of_range=len(refused))
    yard.check(taken)


def test_repeated_with_another_time_or_another_body(yard: Yard) -> None:
    """The first counts; the time does not belong to what identifies an event, and its body does not change any more."""
    yard.meter()
    with yard.load() as load:
        first = [yard.events.event() for _ in range(300)]
        load.send_all(first)
        load.flush()
        later = [usage._replace(time=usage.time - timedelta(days=yard.random.randrange(1, 30))) for usage in first]
        other = [_with_more_output(usage) for usage in first]
        mixed = [*later, *other]
        yard.random.shuffle(mixed)
        load.send_all(mixed)
    yard.settle()
    assert refusals(yard) == Counter(conflict=len(other))
    yard.check(first)


def _with_more_output(usage: Usage) -> Usage:
    tokens = usage.data["tokens"]
    return usage._replace(data={**usage.data, "tokens": tokens | {"output": tokens["output"] + 1}})


POISON: list[tuple[bytes | None, str]] = [
    (b"", "malformed_json"),
    (None, "malformed_json"),
    (b"\xff\xfe\x00", "malformed_json"),
    (b"[" * 100_000, "malformed_json"),
    (b"null", "invalid_event"),
    (b'{"id": 1e400}', "malformed_json"),
    (b'"' + b"x" * (EVENT_BYTES_MAX + 1) + b'"', "too_large"),
]


def test_poison_among_many(yard: Yard) -> None:
    """Refused one by one, with a reason; what stands around it in the same batch counts."""
    yard.meter()
    raw = Producer({"bootstrap.servers": yard.servers, "message.max.bytes": 1_048_000})
    with yard.load() as load:
        for _turn in range(3):
            load.send_all([yard.events.event() for _ in range(200)])
            for payload, _reason in POISON:
                raw.produce(USAGE_EVENTS.name, payload)
            unknown = yard.events.event(tenant=f"nobody-{yard.mark}")
            raw.produce(USAGE_EVENTS.name, str(unknown.as_json()).encode())
        load.flush()
    assert raw.flush(60) == 0
    yard.settle()
    found = refusals(yard)
    assert sum(found.values()) == 3 * (len(POISON) + 1), found
    assert found["too_large"] == 3
    yard.check()


def test_a_rate_card_changed_in_mid_batch(yard: Yard) -> None:
    """An event costs what held at its own time, whichever batch it is in; what was rated before is not touched."""
    meter, tenant = yard.meter(), yard.events.tenants[0]
    meter.await_ready()
    change = yard.events.now - timedelta(hours=1)
    with yard.load() as load:
        before = [yard.events.event(tenant=tenant) for _ in range(300)]
        load.send_all(before)
        load.flush()
        yard.settle()
        publish(yard.servers, [card_record(card(tenant, 2, change, yard.events.now, factor=3))])

        def known() -> bool:
            load.send(yard.events.event(tenant=tenant, model="m", time=change))
            load.flush()
            cards = yard.client.query("SELECT DISTINCT rate_card FROM usage_events").result_rows
            return (f"{tenant}@2",) in [tuple(row) for row in cards]

        await_true(known, lambda: f"the new card is in force\n{yard.logs()}")
        # Times on both sides of the change, mixed in every batch.
        load.send_all([yard.events.event(tenant=tenant) for _ in range(600)])
        load.flush()
    yard.settle()
    rows = yard.client.query("SELECT event_id, rate_card FROM usage_events").result_rows
    cards = {str(event_id): str(name) for event_id, name in rows}
    old = {usage.event_id for usage in before}
    for usage in yard.counted():
        name = cards.get(usage.event_id)
        if name is None:
            continue
        if usage.time < change or usage.event_id in old:
            assert name == f"{tenant}@1", usage
        elif usage.time > change:
            assert name == f"{tenant}@2", usage
        if name == f"{tenant}@2":
            yard.factors[usage.identity] = 3
    yard.check()
