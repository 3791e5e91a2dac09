"""A late rating rates an event that had no price, once, and is a repetition of it in every other case."""

import json
from datetime import UTC, datetime, timedelta

from taximeter_schemas import late_ratings, wire
from taximeter_schemas.control import ControlKind, ControlRecord
from taximeter_schemas.control_snapshot import ControlSnapshot
from taximeter_schemas.late_ratings import LateRating, encode
from taximeter_schemas.rate_cards import Price, RateCard
from taximeter_schemas.tenants import Tenant
from taximeter_streams.meter.columns import build_columns
from taximeter_streams.meter.dedupe import Counted, log_mark
from taximeter_streams.meter.folding import Examined, Folded, Received, examine_all, fold
from taximeter_streams.meter.pricing import Pricing
from taximeter_streams.meter.spending import spend_records

TIME = datetime(2026, 6, 1, 8, tzinfo=UTC)
LONG_AFTER_MS = int((TIME + timedelta(days=60)).timestamp() * 1000)
MARK = log_mark("log", 0)
INPUT = wire.Tokens(uncached_input=3)


def snapshot(*cards: tuple[int, datetime, str]) -> ControlSnapshot:
    """acme, and versions of its card: number, effective from, and the model that it prices."""
    known = ControlSnapshot().apply(_record(ControlKind.TENANT, "acme", Tenant(id="acme")))
    for version, effective_from, model in cards:
        prices = (Price(model=model, uncached_input=10 * version, output=100),)
        card = RateCard(
            id="default",
            version=version,
            effective_from=effective_from,
            recorded_at=TIME + timedelta(days=50),
            prices=prices,
        )
        known = known.apply(_record(ControlKind.RATE_CARD, card.name, card))
    return known


def _record(kind: ControlKind, name: str, body: Tenant | RateCard) -> ControlRecord:
    return ControlRecord(kind=kind, id=name, body=body.model_dump(mode="json"), recorded_at=TIME)


def late(event_id: str = "e1", tokens: wire.Tokens = INPUT) -> LateRating:
    data = wire.UsageData(tenant="acme", feature="chat", model="m", tokens=tokens)
    return LateRating(id=event_id, source="svc", time=TIME, data=data)


def folded(*ratings: LateRating, under: ControlSnapshot, known: dict[bytes, Counted] | None = None) -> list[Examined]:
    messages = [Received(offset, LONG_AFTER_MS, encode(rating)) for offset, rating in enumerate(ratings)]
    return fold(examine_all(messages, under.tenants), known or {}, MARK, Pricing(under)).rows


def became(rows: list[Examined]) -> list[str]:
    return [f"{row.disposition}/{row.reason}" for row in rows]


PRICED = snapshot((1, TIME - timedelta(days=1), "m"))


def test_it_is_rated_at_its_own_time_however_long_ago_that_is() -> None:
    (row,) = folded(late(), under=PRICED)
    assert became([row]) == ["rated/rated_later"]
    assert (row.metered_pico, row.rate_card) == (30, "default@1")
    columns = dict(build_columns(Folded([row]), "log", 0))
    assert (columns["event_id"], columns["time"]) == (["e1"], [TIME])


def test_the_price_is_the_one_in_force_then_as_it_is_known_now() -> None:
    versions = snapshot(
        (1, TIME - timedelta(days=9), "other"),  # was in force, and did not price it
        (2, TIME - timedelta(days=1), "m"),  # published later, in force from before
        (3, TIME + timedelta(days=1), "m"),  # not in force yet
    )
    (row,) = folded(late(), under=versions)
    assert row.rate_card == "default@2"


def test_without_a_price_it_is_a_repetition_and_may_be_tried_again() -> None:
    for under in (snapshot(), snapshot((1, TIME + timedelta(seconds=1), "m")), snapshot((1, TIME, "other"))):
        batch = fold(examine_all([Received(0, LONG_AFTER_MS, encode(late()))], under.tenants), {}, MARK, Pricing(under))
        assert became(batch.rows) == ["duplicate/still_unrated"]
        assert batch.counted(MARK) == [] and batch.rejected == []


def test_asked_twice_it_is_rated_once_within_a_batch_and_over_many() -> None:
    rows = folded(late(), late(), under=PRICED)
    assert became(rows) == ["rated/rated_later", "duplicate/rated_later"]
    known = {rows[0].identity: Counted(rows[0].body, log_mark("another", 3), 7)}
    assert became(folded(late(), under=PRICED, known=known)) == ["duplicate/rated_later"]
    # Even should the warehouse tell the event differently.
    assert became(folded(late(tokens=wire.Tokens(output=1)), under=PRICED, known=known)) == ["duplicate/rated_later"]


def test_it_is_not_the_event_and_not_anothers() -> None:
    event = wire.UsageEvent(id="e1", source="svc", time=TIME, data=late().data)
    identities = [wire.identity_hash(one) for one in (event, late(), late("e2"))]
    assert len(set(identities)) == 3


def test_budgets_hear_of_it_in_the_quarter_hour_of_its_own_time() -> None:
    rows = folded(late(), late(), under=PRICED)
    columns = dict(build_columns(Folded(rows), "log", 0))
    assert columns["disposition"] == ["rated", "duplicate"]
    (record,) = spend_records(columns, TIME)
    (entry,) = record.entries
    assert (entry.amount_pico, entry.events, entry.slot_start) == (30, 1, int(TIME.timestamp()))


def test_what_is_no_late_rating_is_rejected_as_before() -> None:
    good = json.loads(encode(late()))
    bad = [
        good | {"data": good["data"] | {"hop": -1}},
        good | {"data": good["data"] | {"tokens": {"uncached_input": 1, "total": 9}}},
        good | {"type": "taximeter.rating.v2"},
    ]
    for payload in bad:
        assert late_ratings.decode(json.dumps(payload).encode()) is None
        messages = [Received(0, LONG_AFTER_MS, json.dumps(payload).encode())]
        (row,) = examine_all(messages, PRICED.tenants)
        assert (row.disposition, row.reason) == ("rejected", "invalid_event")
    assert late_ratings.decode(b"{") is None
