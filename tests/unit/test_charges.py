"""What was agreed, applied in its order: each case worked by hand, to the last pico-unit."""

from datetime import UTC, datetime
from typing import Any

import pytest

from taximeter_billing.declarations.agreements import read_contract
from taximeter_billing.domain.charges import Agreed, Charges, charge, net_pico
from taximeter_billing.domain.contracts import agreement
from taximeter_billing.domain.credits import Grant
from taximeter_billing.domain.parcels import Component, Parcel
from taximeter_billing.domain.spans import spans_of
from taximeter_billing.domain.takeback import Reserved
from taximeter_schemas.money import to_pico
from taximeter_schemas.periods import billing_month

NOVEMBER = billing_month("2026-11", "UTC")
MILLION = 1_000_000


def parcel(feature: str, tokens: int, *, segment: int = 0, cached: int = 0, saved: str | None = None) -> Parcel:
    """Input at 3 USD a million, cached input at a tenth of it."""
    parts = [Component("m", "uncached_input", tokens - cached, 3 * MILLION, (tokens - cached) * 3 * MILLION)]
    if cached:
        parts.append(Component("m", "cache_read_gpu", cached, 300_000, cached * 3 * MILLION))
    metered = sum(part.amount_pico for part in parts)
    listed = sum(part.list_pico for part in parts)
    savings = listed - metered if saved is None else to_pico(saved)
    return Parcel(feature, "m", "default@1", segment, 1, tuple(parts), listed, metered, savings)


def charges(parcels: list[Parcel], grants: tuple[Grant, ...] = (), currency: str = "USD", **terms: Any) -> Charges:
    held = []
    if terms:
        full = {"id": "c", "tenant": "acme", "starts": "2026-01-01T00:00:00Z", **terms}
        held = [agreement(read_contract(full), {})]
    reserved = [Reserved.between(r, NOVEMBER.start, NOVEMBER.end) for one in held for r in one.terms.reservations]
    agreed = Agreed(NOVEMBER, "UTC", currency, spans_of(NOVEMBER, held, grants), reserved, grants)
    return charge(parcels, agreed, "salt")


def lines(found: Charges) -> dict[str, str]:
    return {line.kind: str(line.amount_pico) for line in found.adjustments}


GRADUATED = {
    "id": "input",
    "meter": "input",
    "mode": "graduated",
    "tiers": [{"up_to": 100 * MILLION, "price": "3"}, {"up_to": 1000 * MILLION, "price": "2.50"}, {"price": "2"}],
}


def test_without_a_contract_the_card_alone_counts() -> None:
    assert charges([parcel("chat", 10, cached=4)]).net_pico == 6 * 3 * MILLION + 4 * 300_000


def test_tiers_are_pooled_across_features() -> None:
    found = charges([parcel("chat", 60 * MILLION), parcel("embed", 90 * MILLION)], tariffs=[GRADUATED])
    assert found.net_pico == to_pico("425")
    tiered = {standing.parcel.feature: standing.parcel.list_pico + standing.tier_pico for standing in found.usage}
    assert tiered == {"chat": to_pico("170"), "embed": to_pico("255")}
    position = found.usage[1].positions[0]
    assert (position.start, position.end, position.quantity) == (0, 150 * MILLION, 90 * MILLION)


def test_a_tier_changes_savings_by_the_factor_that_it_changes_list_by() -> None:
    halved = [{"id": "t", "meter": "input", "mode": "flat", "price": "1.50"}]
    plain = charges([parcel("chat", 1000, cached=900)])
    found = charges([parcel("chat", 1000, cached=900)], tariffs=halved)
    assert found.net_pico * 2 == plain.net_pico
    assert found.usage[0].savings_pico * 2 == plain.usage[0].savings_pico


@pytest.mark.parametrize(
    ("mode", "more", "usd"),
    [
        ("volume", {"tiers": [{"up_to": 100, "price": "3"}, {"price": "2"}]}, "0.000202"),  # 101 tokens, all at 2
        ("graduated", {"tiers": [{"up_to": 100, "price": "3"}, {"price": "2"}]}, "0.000302"),
        ("flat", {"price": "5"}, "0.000505"),
        ("package", {"price": "0.10", "package_size": 50}, "0.30"),  # three packages begun
    ],
)
def test_modes(mode: str, more: dict[str, Any], usd: str) -> None:
    found = charges([parcel("chat", 101)], tariffs=[{"id": "t", "meter": "input", "mode": mode, **more}])
    assert found.net_pico == to_pico(usd)


def test_a_price_that_changes_within_the_month_keeps_the_position_in_the_tiers() -> None:
    def tariff(first: str, second: str, since: str | None) -> dict[str, Any]:
        tiers = [{"up_to": 50 * MILLION, "price": first}, {"price": second}]
        return {"id": "t", "meter": "input", "mode": "graduated", "tiers": tiers, "effective_from": since}

    tariffs = [tariff("3", "2", None), tariff("2.50", "1.50", "2026-11-16T00:00:00Z")]
    usage = [parcel("chat", 40 * MILLION, segment=0), parcel("chat", 60 * MILLION, segment=1)]
    assert charges(usage, tariffs=tariffs).net_pico == to_pico("220")


def test_packages_are_borne_by_all_units_of_the_month() -> None:
    package = {"id": "t", "meter": "input", "mode": "package", "price": "0.30", "package_size": 100}
    grant = Grant("g", 0, effective_at=datetime(2026, 11, 16, tzinfo=UTC))  # cuts the month in two
    usage = [parcel("chat", 60, segment=0), parcel("embed", 60, segment=1), parcel("search", 60, segment=1)]
    found = charges(usage, (grant,), tariffs=[package])
    assert found.net_pico == to_pico("0.60")  # 180 units begin two packages, wherever the second began
    assert {net_pico(standing) for standing in found.usage} == {to_pico("0.20")}


def test_allowance_then_discounts_each_from_what_is_left() -> None:
    found = charges(
        [parcel("chat", 3 * MILLION), parcel("embed", MILLION)],
        allowances=[{"id": "free", "meter": "input", "quantity": MILLION}],
        discounts=[{"id": "ten", "percent": "10"}, {"id": "fixed", "amount": "1"}],
    )
    # 12 USD list; a quarter is free: 9; 10% off: 8.10; 1 off.
    assert [str(line.amount_pico) for line in found.adjustments] == [
        str(-to_pico("3")), str(-to_pico("0.90")), str(-to_pico("1")),
    ]  # fmt: skip
    assert found.net_pico == to_pico("7.10")


def test_a_discount_for_one_feature_and_never_below_nothing() -> None:
    found = charges(
        [parcel("chat", MILLION), parcel("embed", MILLION)],
        discounts=[{"id": "big", "amount": "5", "features": ["chat"]}],
    )
    assert found.net_pico == to_pico("3")


@pytest.mark.parametrize(("basis", "missing"), [("net", "100"), ("list", None)])
def test_minimum_on_both_bases(basis: str, missing: str | None) -> None:
    usage = [parcel("chat", 400 * MILLION, saved="300")]  # 1,200 list, 900 net
    found = charges(usage, minimum={"amount": "1000", "basis": basis})
    assert lines(found) == ({"minimum": str(to_pico(missing))} if missing else {})


def test_a_minimum_for_a_part_of_the_month() -> None:
    found = charges([], starts="2026-11-11T00:00:00Z", minimum={"amount": "1000"})
    assert found.net_pico == to_pico("666.67")
    assert charges([], starts="2026-11-11T00:00:00Z", minimum={"amount": "1000", "prorate": False}).net_pico == to_pico(
        "1000"
    )


def test_credits_pay_before_the_minimum_and_do_not_lessen_what_counts() -> None:
    grant = Grant("g", to_pico("100"), effective_at=datetime(2026, 1, 1, tzinfo=UTC))
    found = charges([parcel("chat", 10 * MILLION)], (grant,), minimum={"amount": "50"})
    assert lines(found) == {"credit": str(-to_pico("30")), "minimum": str(to_pico("20"))}
    assert (found.net_pico, found.owed_pico) == (to_pico("20"), to_pico("50"))


def test_a_credit_pays_only_what_was_used_while_it_was_open() -> None:
    grant = Grant(
        "g",
        to_pico("100"),
        effective_at=datetime(2026, 1, 1, tzinfo=UTC),
        expires_at=datetime(2026, 11, 11, tzinfo=UTC),
    )
    found = charges([parcel("chat", MILLION, segment=0), parcel("chat", 2 * MILLION, segment=1)], (grant,))
    assert found.drawn_pico == {"g": to_pico("3")}
    assert found.net_pico == to_pico("6")


def test_reserved_throughput_is_paid_by_the_minute_used_or_not() -> None:
    reservation = {"id": "r", "model": "m", "units": 2, "tokens_per_minute": 1000, "unit_hour": "0.60"}
    found = charges([], reservations=[reservation])
    assert lines(found) == {"reservation": str(to_pico("0.01") * 2 * 30 * 24 * 60)}


def test_nothing_owed_is_nothing() -> None:
    assert charges([]).net_pico == 0
