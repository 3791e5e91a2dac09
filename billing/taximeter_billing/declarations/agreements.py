"""Reads what was agreed with tenants: plans, contracts and credits. Prices as on a rate card, quantities in whole units.

Tokens are priced by the million, requests, search units and adapter-hours by one, GPU time by the second.
"""

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from pydantic import BaseModel

from taximeter_billing.declarations.amounts import amount
from taximeter_billing.domain.contracts import Contract, CreditGrant, Meter, Plan
from taximeter_billing.errors import DeclarationError
from taximeter_schemas.errors import AmountError
from taximeter_schemas.money import price_per_token_pico, to_pico

_GPU_SECOND = "gpu_second"
_MICROSECONDS = 1_000_000
_MINUTES_PER_HOUR = 60
_TOKENS = {"input", "output"}


def read_plan(entry: Mapping[str, Any]) -> Plan:
    """A plan. Raises DeclarationError, pydantic's ValidationError."""
    return Plan.model_validate(_terms(entry))


def read_contract(entry: Mapping[str, Any]) -> Contract:
    """A contract. Raises DeclarationError, pydantic's ValidationError."""
    return Contract.model_validate(_terms(entry))


def read_credit(entry: Mapping[str, Any]) -> CreditGrant:
    """A grant of credit. Raises DeclarationError, pydantic's ValidationError."""
    return CreditGrant.model_validate({**_without(entry, "amount"), "amount_pico": amount(entry, "amount", to_pico)})


def body(model: BaseModel) -> dict[str, Any]:
    """As the book keeps it: without defaults, so that a field that is new later changes nothing that was declared."""
    return model.model_dump(mode="json", exclude_defaults=True)


def _terms(entry: Mapping[str, Any]) -> dict[str, Any]:
    content = dict(entry)
    readers = {"tariffs": _tariff, "allowances": _allowance, "discounts": _discount, "reservations": _reservation}
    for name, read in readers.items():
        if name in content:
            content[name] = _each(name, content[name], read)
    if "minimum" in content:
        minimum = _mapping("minimum", content["minimum"])
        content["minimum"] = _placed(
            "minimum", lambda: {**_without(minimum, "amount"), "amount_pico": amount(minimum, "amount", to_pico)}
        )
    return content


def _tariff(entry: Mapping[str, Any]) -> dict[str, Any]:
    content = dict(entry)
    meter, mode = content.get("meter"), content.get("mode")
    convert = _price_converter(str(meter), package=mode == "package")
    tiers = content.pop("tiers", None)
    if "price" in content:
        tiers = [{"price": content.pop("price")}]
    if not isinstance(tiers, list):
        raise DeclarationError("tiers: a list is needed (or a price)")
    content["tiers"] = [_tier(index, tier, str(meter), convert) for index, tier in enumerate(tiers)]
    if "package_size" in content:
        content["package_size"] = _units(content, "package_size")
    return {**content, "meter": _meter(content)}


def _tier(index: int, entry: object, meter: str, convert: Callable[[Any], int]) -> dict[str, Any]:
    tier = _mapping(f"tiers[{index}]", entry)

    def read() -> dict[str, Any]:
        read = {**_without(tier, "price"), "price_pico": amount(tier, "price", convert)}
        if tier.get("up_to") is not None:
            read["up_to"] = _units({"meter": meter, **tier}, "up_to")
        return read

    return _placed(f"tiers[{index}]", read)


def _allowance(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {**entry, "quantity": _units(entry, "quantity"), "meter": _meter(entry)}


def _discount(entry: Mapping[str, Any]) -> dict[str, Any]:
    content = dict(entry)
    if "percent" in content:
        content["bps"] = amount(content, "percent", _basis_points)
        content.pop("percent")
    if "amount" in content:
        content["amount_pico"] = amount(content, "amount", to_pico)
        content.pop("amount")
    return content


def _reservation(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {**_without(entry, "unit_hour"), "unit_minute_pico": amount(entry, "unit_hour", _per_minute)}


def _meter(entry: Mapping[str, Any]) -> str:
    meter = entry.get("meter")
    return Meter.GPU.value if meter == _GPU_SECOND else str(meter)


def _units(entry: Mapping[str, Any], field: str) -> int:
    """A quantity; GPU time is given in seconds and kept in microseconds."""
    value = entry.get(field)
    if isinstance(value, bool) or not isinstance(value, int):
        raise DeclarationError(f"{field}: a whole number is needed")
    return value * _MICROSECONDS if entry.get("meter") == _GPU_SECOND else value


def _price_converter(meter: str, *, package: bool) -> Callable[[str | int | Decimal], int]:
    if package or meter not in {*_TOKENS, _GPU_SECOND}:
        return to_pico
    return price_per_token_pico if meter in _TOKENS else _per_microsecond


def _per_microsecond(value: str | int | Decimal) -> int:
    return _divided(value, _MICROSECONDS, "a GPU-second")


def _per_minute(value: str | int | Decimal) -> int:
    return _divided(value, _MINUTES_PER_HOUR, "an hour")


def _divided(value: str | int | Decimal, parts: int, of: str) -> int:
    pico, rest = divmod(to_pico(value), parts)
    if rest:
        raise AmountError(f"{value!r} {of} is finer than 1e-12 in the unit that is counted")
    return pico


def _basis_points(value: str | int | Decimal) -> int:
    points, rest = divmod(to_pico(value), 10**10)
    if rest or not 0 < points <= 10_000:
        raise AmountError(f"{value!r} is not a percentage above 0 up to 100, to a hundredth")
    return points


def _each(name: str, entries: object, read: Callable[[Mapping[str, Any]], dict[str, Any]]) -> list[dict[str, Any]]:
    if not isinstance(entries, list):
        raise DeclarationError(f"{name}: a list is needed")
    found = []
    for index, entry in enumerate(entries):
        place = f"{name}[{index}]"
        given = _mapping(place, entry)
        found.append(_placed(place, lambda given=given: read(given)))  # type: ignore[misc]
    return found


def _placed(place: str, read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return read()
    except DeclarationError as error:
        raise DeclarationError(f"{place}.{error}") from None


def _mapping(place: str, entry: object) -> Mapping[str, Any]:
    if not isinstance(entry, Mapping):
        raise DeclarationError(f"{place}: a mapping is needed")
    return entry


def _without(entry: Mapping[str, Any], field: str) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != field}
