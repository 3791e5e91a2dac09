"""What becomes of each message of a batch, and what the budgets hear of it."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from taximeter_schemas.control import ControlKind, ControlRecord
from taximeter_schemas.control_snapshot import ControlSnapshot
from taximeter_schemas.rate_cards import Price, RateCard
from taximeter_schemas.spend import SpendRecord
from taximeter_schemas.tenants import Tenant
from taximeter_streams.meter.columns import build_columns
from taximeter_streams.meter.dedupe import Counted, log_mark
from taximeter_streams.meter.folding import Folded, Received, examine_all, fold
from taximeter_streams.meter.pricing import Pricing
from taximeter_streams.meter.spending import ENTRIES_MAX, spend_records
from tests.usage_events import usage

TIME = datetime(2026, 11, 24, 8, tzinfo=UTC)  # of the events that `usage` makes
ARRIVED_MS = int(TIME.timestamp() * 1000)
MARK = log_mark("log", 0)
OTHER_BODY = {"uncached_input": 3, "output": 4}


def snapshot() -> ControlSnapshot:
    """acme pays by a card; "late" has a card that is not in force yet, "bare" one that nobody published."""
    prices = (Price(model="m", uncached_input=10, output=100), Price(model="embed", uncached_input=10))
    folded = ControlSnapshot()
    for card_id, effective_from in (("default", TIME - timedelta(days=1)), ("late", TIME + timedelta(seconds=1))):
        card = RateCard(id=card_id, version=1, effective_from=effective_from, recorded_at=TIME, prices=prices)
        folded = folded.apply(record(ControlKind.RATE_CARD, card.name, card.model_dump(mode="json")))
    for tenant_id, card_id in (("acme", "default"), ("globex", "default"), ("late", "late"), ("bare", "bare")):
        tenant = Tenant(id=tenant_id, rate_card=card_id)
        folded = folded.apply(record(ControlKind.TENANT, tenant_id, tenant.model_dump(mode="json")))
    return folded


def record(kind: ControlKind, name: str, body: dict[str, Any]) -> ControlRecord:
    return ControlRecord(kind=kind, id=name, body=body, recorded_at=TIME)


SNAPSHOT = snapshot()


def folded(
    events: list[dict[str, Any]], known: Mapping[bytes, Counted] | None = None, first: int = 0, mark: bytes = MARK
) -> Folded:
    """Fold the events as one batch that begins at offset `first`."""
    messages = [
        Received(offset, ARRIVED_MS, json.dumps(event).encode()) for offset, event in enumerate(events, start=first)
    ]
    return fold(examine_all(messages, SNAPSHOT.tenants), known or {}, mark, Pricing(SNAPSHOT))


def became(batch: Folded) -> list[str]:
    return ["/".join(filter(None, (row.disposition, row.reason))) for row in batch.rows]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([usage("a"), usage("b")], ["rated", "rated"]),
        ([usage("a"), usage("a")], ["rated", "duplicate"]),
        ([usage("a"), usage("a") | {"time": "2026-11-24T08:00:01Z"}], ["rated", "duplicate"]),  # stamped anew
        ([usage("a"), usage("a", outcome="completed")], ["rated", "duplicate"]),  # a default written out
        ([usage("a"), usage("a", tokens=OTHER_BODY)], ["rated", "rejected/conflict"]),
        ([usage("a"), usage("a", tokens=OTHER_BODY), usage("a")], ["rated", "rejected/conflict", "duplicate"]),
        ([usage("a"), usage("a", tenant="globex")], ["rated", "rated"]),  # another tenant is another identity
        ([usage("a"), usage("a") | {"source": "other"}], ["rated", "rated"]),
        ([usage("a", tenant="nobody"), usage("a")], ["rejected/unknown_tenant", "rated"]),  # a refusal counts nothing
        ([usage("a", model="x")], ["unrated/unknown_model"]),
        ([usage("a", model="x"), usage("a", model="x")], ["unrated/unknown_model", "duplicate"]),
        ([usage("a", model="embed", tokens={"uncached_input": 3})], ["rated"]),
        ([usage("a", model="embed")], ["unrated/no_output_price"]),
        ([usage("a", tenant="late")], ["unrated/no_rate_card"]),
        ([usage("a", tenant="late") | {"time": "2026-11-24T08:00:01Z"}], ["rated"]),  # in force from this second on
        ([usage("a", tenant="bare")], ["unrated/no_rate_card"]),
    ],
)
def test_what_becomes_of_a_batch(events: list[dict[str, Any]], expected: list[str]) -> None:
    assert became(folded(events)) == expected


def test_a_rated_row_carries_its_cost_and_the_card_that_said_so() -> None:
    row = folded([usage("a")]).rows[0]
    assert (row.list_pico, row.metered_pico, row.currency, row.rate_card) == (230, 230, "USD", "default@1")


def test_what_does_not_count_costs_nothing_and_is_not_marked() -> None:
    batch = folded([usage("a"), usage("a"), usage("a", tokens=OTHER_BODY), usage("b", model="x"), usage("c", hop=-1)])
    assert [row.metered_pico for row in batch.rows] == [230, 0, 0, 0, 0]
    assert [entry.offset for _identity, entry in batch.counted(MARK)] == [0, 3]
    assert [row.message.offset for row in batch.rejected] == [2, 4]


@pytest.mark.parametrize(
    ("events", "first", "mark", "expected"),
    [
        ([usage("a")], 5, MARK, ["rated"]),  # the row itself, read again
        ([usage("a")], 6, MARK, ["duplicate"]),
        ([usage("a")], 5, log_mark("log", 1), ["duplicate"]),  # the same offset of another partition
        ([usage("a")], 5, log_mark("new", 0), ["duplicate"]),  # the same offset of another log
        ([usage("a", tokens=OTHER_BODY)], 6, MARK, ["rejected/conflict"]),
        ([usage("b"), usage("a"), usage("a")], 4, MARK, ["rated", "rated", "duplicate"]),
    ],
)
def test_what_was_counted_before(events: list[dict[str, Any]], first: int, mark: bytes, expected: list[str]) -> None:
    known = dict(folded([usage("a")], first=5).counted(MARK))
    assert became(folded(events, known, first, mark)) == expected


def spent(events: list[dict[str, Any]], first: int = 0) -> list[SpendRecord]:
    return spend_records(dict(build_columns(folded(events, first=first), "log", 3)), TIME)


def test_spend_is_folded_by_tenant_tags_and_quarter_hour() -> None:
    records = spent(
        [
            usage("b", tenant="globex"),
            usage("c") | {"time": "2026-11-24T08:14:59.999999Z"},
            usage("d"),
            usage("e") | {"time": "2026-11-24T08:15:00Z"},  # the next quarter hour
            usage("f", lease_id="lease"),
            usage("g", feature="search"),
            usage("g", feature="search"),  # a duplicate is not spent
            usage("h", model="x"),  # nor is what has no price
        ],
        first=20,
    )
    assert [(item.tenant, item.currency, item.log_id, item.partition) for item in records] == [
        ("acme", "USD", "log", 3),
        ("globex", "USD", "log", 3),
    ]
    assert {(item.first_offset, item.last_offset) for item in records} == {(20, 27)}
    eight = int(TIME.timestamp())
    entries = [(e.feature, e.lease_id, e.slot_start - eight, e.amount_pico, e.events) for e in records[0].entries]
    assert entries == [
        ("chat", None, 0, 460, 2),
        ("chat", None, 900, 230, 1),
        ("chat", "lease", 0, 230, 1),
        ("search", None, 0, 230, 1),
    ]


def test_a_batch_without_rated_rows_says_nothing() -> None:
    assert spent([usage("a", model="x")]) == []


def test_too_many_entries_for_one_record_make_consecutive_ranges() -> None:
    records = spent([usage(f"e{number}", lease_id=f"l{number}") for number in range(ENTRIES_MAX + 2)])
    assert [(item.first_offset, item.last_offset, len(item.entries)) for item in records] == [
        (0, ENTRIES_MAX - 1, ENTRIES_MAX),
        (ENTRIES_MAX, ENTRIES_MAX + 1, 2),
    ]
