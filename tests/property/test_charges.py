"""Laws of rating and charging: two ways to price agree, lines add up, nothing depends on order, splits gain nothing."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from taximeter_billing.domain.charges import Agreed, Charges, charge, net_pico
from taximeter_billing.domain.contracts import Contract, agreement
from taximeter_billing.domain.credits import Grant
from taximeter_billing.domain.invoice import Inputs, build_invoice
from taximeter_billing.domain.parcels import Parcel, components
from taximeter_billing.domain.quantities import quantities_of
from taximeter_billing.domain.spans import spans_of
from taximeter_billing.domain.usage import UsageRow
from taximeter_schemas import wire
from taximeter_schemas.money import pico_per_minor_unit
from taximeter_schemas.periods import billing_month
from taximeter_schemas.rate_cards import ContextBand, Price, RateCard
from taximeter_schemas.rating import Rated, rate
from taximeter_schemas.tenants import Tenant

NOVEMBER = billing_month("2026-11", "UTC")
START = datetime(2026, 1, 1, tzinfo=UTC)
CLASSES = ("uncached_input", "output", "reasoning", "cache_read_gpu", "cache_read_cpu", "cache_read_disk",
           "cache_read_provider", "cache_write_5m", "cache_write_1h")  # fmt: skip

amounts = st.integers(0, 10**9)
optional = st.none() | amounts
counts = st.integers(0, 10**6)


@st.composite
def prices(draw: st.DrawFn) -> Price:
    """Any price with an output price, plain or with every dimension."""
    given = {name: draw(optional) for name in CLASSES if name not in {"uncached_input", "output"}}
    bands = sorted(draw(st.sets(st.integers(1, 10**6), max_size=3)))
    return Price(
        model="m",
        uncached_input=draw(amounts),
        output=draw(amounts),
        request=draw(amounts),
        search_unit=draw(amounts),
        gpu_microsecond=draw(amounts),
        adapter_hour=draw(amounts),
        bands=tuple(
            ContextBand(input_over=bound, uncached_input=draw(optional), output=draw(optional)) for bound in bands
        ),
        **given,
    )


@given(prices(), st.lists(counts, min_size=9, max_size=9), st.integers(0, 10**4), st.floats(0, 10**4), counts)
def test_an_event_costs_what_its_components_cost(
    price: Price, used: list[int], reasoning: int, gpu_seconds: float, units: int
) -> None:
    uncached, gpu, cpu, disk, provider, short, long, plain, hours = used
    card = RateCard(version=1, effective_from=START, recorded_at=START, prices=(price,))
    tokens = wire.Tokens(
        uncached_input=uncached,
        cache_read=wire.CacheRead(gpu=gpu, cpu=cpu, disk=disk, provider=provider),
        cache_write=wire.CacheWrite(five_minutes=short, one_hour=long),
        output=plain + reasoning,
        reasoning=reasoning,
    )
    attributes = {"search_units": str(units), "adapter_hours": str(hours)}
    rated = rate(
        card,
        wire.UsageData(
            tenant="acme", feature="f", model="m", tokens=tokens, attributes=attributes,
            worker=wire.Worker(id="w", gpu_seconds=gpu_seconds),
        ),
    )  # fmt: skip
    assert isinstance(rated, Rated)
    row = UsageRow(
        "acme", "f", "m", "", "other", "standard", "default@1", "s", "e", 0, uncached, gpu, cpu, disk, provider, short, long,
        plain + reasoning, "", 0, 0, (), rated.list_pico, rated.metered_pico, reasoning, gpu_seconds, "", *attributes.values(),
    )  # fmt: skip
    reached = price.for_length(row.input_tokens)
    parts = components("", reached, quantities_of(row, reached))
    assert sum(part.amount_pico for part in parts) == rated.metered_pico
    assert sum(part.list_pico for part in parts) == rated.list_pico


PLAIN = Price(model="m", uncached_input=500_000, cache_read_gpu=50_000, output=1_500_000)


@st.composite
def parcels(draw: st.DrawFn) -> list[Parcel]:
    """Usage of some features at one price, with savings of what was read from cache."""
    found = []
    for feature in sorted(draw(st.sets(st.sampled_from("abcdef"), min_size=1))):
        used = {"uncached_input": draw(counts), "cache_read_gpu": draw(counts), "output": draw(counts), "request": 1}
        parts = components("m", PLAIN, used)
        listed, metered = sum(part.list_pico for part in parts), sum(part.amount_pico for part in parts)
        found.append(Parcel(feature, "m", "default@1", 0, 1, parts, listed, metered, listed - metered))
    return found


@st.composite
def terms(draw: st.DrawFn) -> dict[str, Any]:
    """Tiers, an allowance, discounts and a minimum, any of them or none."""
    bound = draw(st.integers(1, 10**6))
    mode = draw(st.sampled_from(["graduated", "volume", "flat", "package"]))
    tiers = [{"up_to": bound, "price_pico": draw(amounts)}, {"price_pico": draw(amounts)}]
    tariff: dict[str, Any] = {"id": "t", "meter": draw(st.sampled_from(["input", "output"])), "mode": mode}
    tariff |= {"tiers": tiers if mode in {"graduated", "volume"} else tiers[1:]}
    tariff |= {"package_size": bound} if mode == "package" else {}
    found: dict[str, Any] = {"tariffs": [tariff] if draw(st.booleans()) else []}
    if draw(st.booleans()):
        found["allowances"] = [{"id": "a", "meter": "input", "quantity": draw(st.integers(1, 10**6))}]
    found["discounts"] = [
        {"id": f"d{place}", "bps": draw(st.integers(1, 10_000))} for place in range(draw(st.integers(0, 2)))
    ]
    if draw(st.booleans()):
        found["minimum"] = {
            "amount_pico": draw(st.integers(0, 10**13)),
            "basis": draw(st.sampled_from(["net", "list"])),
        }
    return found


def charged(usage: list[Parcel], agreed_terms: dict[str, Any], grants: tuple[Grant, ...] = ()) -> Charges:
    contract = Contract.model_validate({"id": "c", "tenant": "acme", "starts": START, **agreed_terms})
    spans = spans_of(NOVEMBER, [agreement(contract, {})], ())
    return charge(usage, Agreed(NOVEMBER, "UTC", "USD", spans, (), grants), "salt")


@given(parcels(), terms(), st.integers(0, 10**13))
def test_lines_add_up_and_nothing_is_owed_below_nothing(
    usage: list[Parcel], agreed: dict[str, Any], credit: int
) -> None:
    grant = Grant("g", credit, effective_at=START)
    found = charged(usage, agreed, (grant,))
    assert found.net_pico == found.owed_pico - sum(found.drawn_pico.values())
    assert found.net_pico >= 0
    assert sum(found.drawn_pico.values()) <= credit
    for standing in found.usage:
        assert net_pico(standing) >= 0
        assert all(left >= 0 for left in standing.left.values())
    if "minimum" in agreed and agreed["minimum"]["basis"] == "net":
        missing = sum(line.amount_pico for line in found.adjustments if line.kind == "minimum")
        assert found.owed_pico == max(found.owed_pico - missing, agreed["minimum"]["amount_pico"])


@given(parcels(), terms())
def test_the_order_of_usage_changes_nothing(usage: list[Parcel], agreed: dict[str, Any]) -> None:
    assert charged(usage, agreed).owed_pico == charged(usage[::-1], agreed).owed_pico


@given(parcels(), terms(), st.sampled_from(["USD", "JPY", "KWD"]))
def test_an_invoice_is_rounded_once_and_its_lines_share_that(
    usage: list[Parcel], agreed: dict[str, Any], currency: str
) -> None:
    found = charged(usage, agreed)
    inputs = Inputs(1, "", {}, "default@1", 1, "")
    invoice = build_invoice(Tenant(id="acme"), NOVEMBER, currency, found, inputs, {})
    unit = pico_per_minor_unit(currency)
    assert abs(invoice.total_minor * unit - found.net_pico) * 2 <= unit
    lines = json.loads(invoice.document)["lines"]
    assert sum(int(line["amount_minor"]) for line in lines) == invoice.total_minor
    assert sum(int(line["net_pico"]) for line in lines) == invoice.net_pico
    assert all(abs(int(line["amount_minor"]) * unit - int(line["net_pico"])) < unit for line in lines)
    assert invoice.list_pico - invoice.savings_pico + invoice.adjustments_pico == invoice.net_pico
    assert build_invoice(Tenant(id="acme"), NOVEMBER, currency, found, inputs, {}).document == invoice.document


FREE_FIRST = {
    "id": "t",
    "meter": "input",
    "mode": "graduated",
    "tiers": [{"up_to": 1, "price_pico": 0}, {"price_pico": 6}],
}


@example([1, 1], {"tariffs": [FREE_FIRST], "allowances": [{"id": "a", "meter": "input", "quantity": 1}]}, 1)
@given(st.lists(st.integers(0, 10**9), min_size=2, max_size=5), terms(), st.integers(0, 29))
def test_a_change_within_the_month_that_changes_nothing_changes_nothing(
    units: list[int], agreed: dict[str, Any], day: int
) -> None:
    """Cutting the period (by a credit that opens, say) leaves what is owed as it was, but for the odd pico-unit of a split."""
    opens = Grant("g", 0, effective_at=NOVEMBER.start + timedelta(days=day))

    def parcel(feature: str, used: int, segment: int) -> Parcel:
        parts = components("m", PLAIN, {"uncached_input": used})
        listed = sum(part.list_pico for part in parts)
        return Parcel(feature, "m", "default@1", segment, 1, parts, listed, listed, 0)

    contract = Contract.model_validate({"id": "c", "tenant": "acme", "starts": START, **agreed})
    spans = spans_of(NOVEMBER, [agreement(contract, {})], (opens,))
    usage = [parcel(f"f{place}", used, 0) for place, used in enumerate(units)]
    cut = [parcel(f"f{place}", used, place % len(spans)) for place, used in enumerate(units)]
    whole = charged(usage, agreed).owed_pico
    parted = charge(cut, Agreed(NOVEMBER, "UTC", "USD", spans), "salt").owed_pico
    assert abs(whole - parted) <= len(units)
