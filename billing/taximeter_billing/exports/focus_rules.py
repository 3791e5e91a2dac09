"""What a row of a FOCUS file must keep to, beyond its columns' kinds: the specification's conditions, as a table. Pure."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal

from taximeter_billing.exports.delimited import Cell
from taximeter_billing.exports.focus_columns import ALLOCATION, COLUMNS, Column, Kind

Row = Mapping[str, Cell]

_TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
_CURRENCY = re.compile(r"^[A-Z]{3}$")
_UNIT = re.compile(r"^[A-Z][A-Za-z]*(-[A-Z][a-z]+)?$")
_DIGITS_MAX, _PLACES_MAX = 38, 30


@dataclass(frozen=True, slots=True)
class Rule:
    """One requirement. `broken` tells whether a row breaks it."""

    says: str
    broken: Callable[[Row], bool]


def _is(row: Row, name: str, *values: str) -> bool:
    return row.get(name) in values


def _null(row: Row, name: str) -> bool:
    return row.get(name) is None


def _priced(row: Row) -> bool:
    """Usage or purchases that correct nothing."""
    return _is(row, "ChargeCategory", "Usage", "Purchase") and not _is(row, "ChargeClass", "Correction")


def _differs(row: Row, price: str, cost: str) -> bool:
    unit, quantity = row.get(price), row.get("PricingQuantity")
    if not isinstance(unit, Decimal) or not isinstance(quantity, Decimal) or _is(row, "ChargeClass", "Correction"):
        return False
    return unit * quantity != row[cost]


def _required(name: str) -> Rule:
    return Rule(f"{name} is needed for usage and purchases", lambda row: _priced(row) and _null(row, name))


def _never_for_tax(name: str) -> Rule:
    return Rule(f"{name} is null for tax", lambda row: _is(row, "ChargeCategory", "Tax") and not _null(row, name))


def _together(one: str, other: str) -> Rule:
    return Rule(f"{one} and {other} are null together", lambda row: _null(row, one) != _null(row, other))


def _below_zero(row: Row, name: str) -> bool:
    amount = row.get(name)
    return isinstance(amount, Decimal) and amount < 0


def _ratios(row: Row) -> list[Decimal]:
    details = json.loads(str(row["AllocatedMethodDetails"]), parse_float=Decimal, parse_int=Decimal)
    return [element["AllocatedRatio"] for element in details["Elements"]]


def _bad_details(row: Row) -> bool:
    if _null(row, "AllocatedMethodDetails"):
        return False
    try:
        return not _ratios(row)
    except (KeyError, TypeError, ValueError):
        return True


def _usage_unconsumed(row: Row) -> bool:
    return _is(row, "ChargeCategory", "Usage") and _priced(row) and _null(row, "ConsumedQuantity")


_PRICED = (
    "PricingQuantity",
    "PricingUnit",
    "ListUnitPrice",
    "ContractedUnitPrice",
    "PricingCategory",
    "SkuId",
    "SkuPriceId",
)

RULES = (
    *(_required(name) for name in _PRICED),
    *(_never_for_tax(name) for name in _PRICED),
    _together("PricingQuantity", "PricingUnit"),
    _together("ConsumedQuantity", "ConsumedUnit"),
    Rule("ListUnitPrice times PricingQuantity is ListCost", lambda row: _differs(row, "ListUnitPrice", "ListCost")),
    Rule(
        "ContractedUnitPrice times PricingQuantity is ContractedCost",
        lambda row: _differs(row, "ContractedUnitPrice", "ContractedCost"),
    ),
    Rule("ListUnitPrice is not below 0", lambda row: _below_zero(row, "ListUnitPrice")),
    Rule("ContractedUnitPrice is not below 0", lambda row: _below_zero(row, "ContractedUnitPrice")),
    Rule("usage says what was consumed", _usage_unconsumed),
    Rule(
        "only usage says what was consumed",
        lambda row: not _is(row, "ChargeCategory", "Usage") and not _null(row, "ConsumedQuantity"),
    ),
    Rule(
        "a purchase is not usage-based",
        lambda row: _is(row, "ChargeCategory", "Purchase") and _is(row, "ChargeFrequency", "Usage-Based"),
    ),
    Rule("ChargeFrequency is never null", lambda row: _null(row, "ChargeFrequency")),
    Rule("a SKU's details need a SKU price", lambda row: not _null(row, "SkuPriceDetails") and _null(row, "SkuPriceId")),
    Rule("a SKU's meter needs a SKU", lambda row: not _null(row, "SkuMeter") and _null(row, "SkuId")),
    Rule("periods begin before they end", lambda row: not _in_order(row)),
    Rule("ServiceCategory holds the subcategory", lambda row: _null(row, "ServiceSubcategory")),
    _together("AllocatedMethodId", "AllocatedResourceId"),
    _together("AllocatedMethodId", "AllocatedMethodDetails"),
    Rule("AllocatedMethodDetails has Elements, each with its AllocatedRatio", _bad_details),
    Rule(
        "names of what is allocated need a method",
        lambda row: _null(row, "AllocatedMethodId") and any(not _null(row, name) for name in ALLOCATION),
    ),
)  # fmt: skip


def _in_order(row: Row) -> bool:
    pairs = (("BillingPeriodStart", "BillingPeriodEnd"), ("ChargePeriodStart", "ChargePeriodEnd"))
    return all(str(row.get(start)) < str(row.get(end)) for start, end in pairs)


def violations(rows: Iterable[Row]) -> list[str]:
    """What rows break, in words, with their place from 1; nothing when they keep to everything."""
    found = []
    for place, row in enumerate(rows, start=1):
        found += [f"row {place}: {column.name} {said}" for column in COLUMNS for said in _cell(column, row)]
        found += [f"row {place}: {rule.says}" for rule in RULES if rule.broken(row)]
        found += [f"row {place}: {name} is no column" for name in row if name not in _KNOWN]
    return found


_KNOWN = {column.name for column in COLUMNS}


def _cell(column: Column, row: Row) -> list[str]:
    cell = row.get(column.name)
    if cell is None:
        return [] if column.nullable else ["is null"]
    if column.kind is Kind.DECIMAL:
        return _decimal(cell)
    if not isinstance(cell, str):
        return [f"is no text: {cell!r}"]
    if not cell.strip():
        return ["is blank; null is meant"]
    if column.allowed and cell not in column.allowed:
        return [f"may not be {cell!r}"]
    return _text(column, cell)


def _decimal(cell: Cell) -> list[str]:
    if not isinstance(cell, Decimal) or not cell.is_finite():
        return [f"is no number: {cell!r}"]
    _, digits, exponent = cell.as_tuple()
    assert isinstance(exponent, int)
    if len(digits) > _DIGITS_MAX or -exponent > _PLACES_MAX:
        return [f"has too many digits: {cell}"]
    return []


def _text(column: Column, cell: str) -> list[str]:
    match column.kind:
        case Kind.TIME if not _TIME.match(cell):
            return [f"is no time in UTC: {cell!r}"]
        case Kind.CURRENCY if not _CURRENCY.match(cell):
            return [f"is no currency: {cell!r}"]
        case Kind.JSON:
            try:
                return [] if isinstance(json.loads(cell), dict) else ["is no JSON object"]
            except ValueError:
                return ["is no JSON"]
        case _:
            unit = column.name in {"PricingUnit", "ConsumedUnit"}
            return [f"is no unit: {cell!r}"] if unit and not _UNIT.match(cell) else []
