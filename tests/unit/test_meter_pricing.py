"""Which price an event gets: by the card that held at its time, and never one that a row cannot hold."""

from datetime import UTC, datetime, timedelta

import pytest

from taximeter_schemas import wire
from taximeter_schemas.control_snapshot import ControlSnapshot
from taximeter_schemas.rate_cards import Price, RateCard
from taximeter_schemas.rating import Rated, Unrated
from taximeter_schemas.tenants import Tenant
from taximeter_streams.meter.pricing import Pricing

START = datetime(2026, 11, 1, tzinfo=UTC)


def card(version: int, days: int, pico: int, *, recorded: int | None = None) -> RateCard:
    """A version in force from `days` after START on, recorded as many days after (or `recorded`)."""
    return RateCard(
        version=version,
        effective_from=START + timedelta(days=days),
        recorded_at=START + timedelta(days=days if recorded is None else recorded),
        prices=(Price(model="m", uncached_input=pico), Price(model="m", feature="search", uncached_input=pico + 1)),
    )


def event(
    time: datetime, *, tenant: str = "acme", model: str = "m", feature: str = "chat", tokens: int = 1
) -> wire.UsageEvent:
    used = wire.Tokens(uncached_input=tokens)
    data = wire.UsageData(tenant=tenant, feature=feature, model=model, tokens=used)
    return wire.UsageEvent(id="a", source="svc", time=time, data=data)


def pricing(*cards: RateCard) -> Pricing:
    # Without a tenant nothing is rated; one with a card of its own that nobody published is not, either.
    tenants = {"acme": Tenant(id="acme"), "globex": Tenant(id="globex", rate_card="special")}
    return Pricing(ControlSnapshot(tenants=tenants, rate_cards={"default": cards}))


CARDS = (card(3, 20, 300), card(1, 0, 100), card(2, 10, 200))


@pytest.mark.parametrize(
    ("after", "cards", "expected"),
    [
        (timedelta(0), CARDS, ("default@1", 100)),  # the moment it begins
        (timedelta(days=10) - timedelta(microseconds=1), CARDS, ("default@1", 100)),
        (timedelta(days=10), CARDS, ("default@2", 200)),
        (timedelta(days=400), CARDS, ("default@3", 300)),
        (timedelta(days=5), (card(1, 0, 100), card(2, 0, 200, recorded=3)), ("default@2", 200)),  # recorded later wins
        (timedelta(days=5), (card(2, 0, 200), card(1, 0, 100)), ("default@2", 200)),  # and of those the higher version
    ],
)
def test_the_card_that_held_at_the_time(
    after: timedelta, cards: tuple[RateCard, ...], expected: tuple[str, int]
) -> None:
    prices = pricing(*cards)
    for _again in range(2):
        rated = prices.rate(event(START + after))
        assert isinstance(rated, Rated)
        assert (rated.rate_card, rated.metered_pico) == expected
    assert prices.snapshot.card_for("acme", START + after) is next(held for held in cards if held.name == expected[0])


def test_prices_are_remembered_by_everything_that_chooses_them() -> None:
    prices = pricing(*CARDS)
    costs = [prices.rate(event(START, feature=feature)) for feature in ("chat", "search", "chat")]
    assert [cost.metered_pico for cost in costs if isinstance(cost, Rated)] == [100, 101, 100]


@pytest.mark.parametrize(
    ("usage", "reason"),
    [
        (event(START - timedelta(microseconds=1)), "no_rate_card"),  # before the first version
        (event(START, tenant="globex"), "no_rate_card"),
        (event(START, tenant="nobody"), "no_rate_card"),
        (event(START, model="x"), "unknown_model"),
    ],
)
def test_what_has_no_price_is_unrated(usage: wire.UsageEvent, reason: str) -> None:
    assert pricing(*CARDS).rate(usage) == Unrated(reason)


def test_an_amount_that_a_row_cannot_hold_is_unrated() -> None:
    dear = pricing(card(1, 0, 10**15 - 1))
    assert dear.rate(event(START, tokens=10**5)) == Unrated("amount_out_of_range")
    assert isinstance(dear.rate(event(START, tokens=9_000)), Rated)
