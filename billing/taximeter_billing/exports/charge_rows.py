"""The charges that an invoice is made of, one for each row of an export. Pure and exact.

A usage line becomes one charge for each class and price of its receipt. What the cache saved stands in these rows when the
tenant keeps what it saved itself; when a policy moved savings between tenants, or tiers changed their worth, it is a charge of
its own, and so is what tiers take off: these are known only at the period's end. Every adjustment is one charge.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from taximeter_billing.domain.contracts import Meter
from taximeter_billing.domain.parcels import INPUT
from taximeter_billing.domain.split import largest_remainder
from taximeter_billing.domain.storage import STORAGE
from taximeter_schemas.money import pico_per_minor_unit

SAVINGS = "cache_savings"
TIERS = "tiers"


@dataclass(frozen=True, slots=True)
class Charge:
    """One charge, in whole units and exact pico-units.

    `effective_pico` is what it costs exactly; `billed_pico` carries the invoice's rounding, so that all of an invoice's add up to
    what is to be paid. `price_pico` is a unit's price without a cache, None where nothing is counted.
    """

    line: int
    kind: str
    id: str
    label: str
    feature: str
    model: str
    rate_card: str
    unit_class: str
    scope: str
    quantity: int | None
    price_pico: int | None
    list_pico: int
    effective_pico: int
    billed_pico: int
    detail: Mapping[str, str]
    reallocated: bool = False


def invoice_charges(document: Mapping[str, Any]) -> list[Charge]:
    """All charges of an invoice's document. Their billed amounts sum to its payable, their effective ones to its net."""
    unit = pico_per_minor_unit(document["currency"])
    salt = f"{document['tenant']['id']}/{document['period']['label']}"
    found: list[Charge] = []
    for line in document["lines"]:
        exact = list(_usage(line)) if line.get("kind", "usage") == "usage" else [_adjustment(line)]
        found += _billed(exact, int(line["amount_minor"]) * unit, f"{salt}/{line['line']}")
    return found


def _billed(charges: list[Charge], total_pico: int, salt: str) -> list[Charge]:
    """The line's rounding, split by the size of its charges; an odd unit goes by largest remainder."""
    rounding = total_pico - sum(charge.effective_pico for charge in charges)
    weights = {str(place): abs(charge.effective_pico) for place, charge in enumerate(charges)}
    if not any(weights.values()):
        weights["0"] = 1
    shares = largest_remainder(rounding, weights, salt)
    return [
        replace(charge, billed_pico=charge.effective_pico + shares[str(place)]) for place, charge in enumerate(charges)
    ]


def _usage(line: Mapping[str, Any]) -> Iterator[Charge]:
    components = line["receipt"]["components"]
    savings, tiers = int(line["savings_pico"]), int(line["tier_pico"])
    own = keeps_its_own(line)
    in_rows = own and not any(tier["meter"] == Meter.INPUT.value for tier in line["receipt"]["tiers"])
    for part in components:
        listed = int(part["list_pico"])
        yield _part(line, part, listed, int(part["amount_pico"]) if in_rows else listed)
    rest = int(line["list_pico"]) - sum(int(part["list_pico"]) for part in components)
    if rest:  # a receipt that does not list all of its line's price
        yield _beside(line, "usage", "other usage", rest, rest)
    if tiers:
        yield _beside(line, TIERS, "tiers of the contract", 0, tiers)
    if savings and not in_rows:
        yield replace(_beside(line, SAVINGS, "cache savings", 0, -savings), reallocated=not own)


def keeps_its_own(line: Mapping[str, Any]) -> bool:
    """Whether a usage line's savings are what its own tokens saved, so that no policy moved any to or from it.

    Tiers change savings by the factor that they change the list price of input by; where a line has several factors, what lies
    between them counts as its own.
    """
    receipt = line["receipt"]
    parts = receipt["components"]
    saved = sum(int(part["list_pico"]) - int(part["amount_pico"]) for part in parts)
    tiers = [tier for tier in receipt["tiers"] if tier["meter"] == Meter.INPUT.value]
    factors = [Fraction(int(tier["tiered_pico"]), int(tier["list_pico"])) for tier in tiers if int(tier["list_pico"])]
    counted = sum(int(tier["quantity"]) for tier in tiers)
    if counted < sum(int(part["quantity"]) for part in parts if part["class"] in INPUT):
        factors.append(Fraction(1))
    found = [saved * factor for factor in factors or [Fraction(1)]]
    rounding = len(tiers)
    return min(found) - rounding <= int(line["savings_pico"]) <= max(found) + rounding


def _part(line: Mapping[str, Any], part: Mapping[str, Any], listed: int, effective: int) -> Charge:
    quantity = int(part["quantity"])
    price, rest = divmod(listed, quantity) if quantity else (int(part["price_pico"]), 0)
    charge = replace(_beside(line, "usage", str(part["class"]), listed, effective), scope=str(part["price"]))
    if rest:  # a list price that is no whole number of pico-units a unit cannot be shown as quantity times price
        return charge
    return replace(charge, unit_class=str(part["class"]), quantity=quantity, price_pico=price)


def _beside(line: Mapping[str, Any], kind: str, label: str, listed: int, effective: int) -> Charge:
    return Charge(
        line=int(line["line"]),
        kind=kind,
        id="",
        label=label,
        feature=str(line["feature"]),
        model=str(line["model"]),
        rate_card=str(line["rate_card"]),
        unit_class="charge",
        scope="",
        quantity=1 if kind == "usage" else None,
        price_pico=listed if kind == "usage" else None,
        list_pico=listed,
        effective_pico=effective,
        billed_pico=0,
        detail={},
    )


def _adjustment(line: Mapping[str, Any]) -> Charge:
    amount = int(line["net_pico"])
    detail = {str(name): str(value) for name, value in line["receipt"].get("detail", {}).items()}
    kind = str(line["kind"])
    charge = Charge(
        line=int(line["line"]),
        kind=kind,
        id=str(line["id"]),
        label=str(line["model"]),
        feature="",
        model="",
        rate_card="",
        unit_class="",
        scope="",
        quantity=None,
        price_pico=None,
        list_pico=amount,
        effective_pico=amount,
        billed_pico=0,
        detail=detail,
    )
    if kind == STORAGE:
        # Token-hours have no end as a decimal where hits share them, so it is one charge; the receipt's detail has them exactly.
        feature, model, card = (detail[name] for name in ("feature", "model", "rate_card"))
        charge = replace(charge, label="cache storage", feature=feature, model=model, rate_card=card)
        return replace(charge, unit_class="cache_storage", quantity=1, price_pico=amount)
    if kind == "reservation":
        minutes = int(detail["units"]) * int(detail["minutes"])
        price = int(detail["unit_minute_pico"])
        return replace(charge, unit_class="unit_minute", quantity=minutes, price_pico=price)
    # What is taken off, or paid otherwise, takes nothing from list prices.
    return charge if amount > 0 or kind == "void" else replace(charge, list_pico=0)
