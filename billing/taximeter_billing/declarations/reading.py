"""Reads declarations into the models that travel. Amounts are quoted decimals in major units; a float is refused."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from taximeter_billing.declarations.declared import Declared
from taximeter_billing.declarations.references import check_pools, check_references, with_pools
from taximeter_billing.declarations.yaml_file import load
from taximeter_billing.errors import DeclarationError
from taximeter_schemas.budgets import Budget
from taximeter_schemas.cache_policies import load_cache_policy
from taximeter_schemas.cache_uses import describe
from taximeter_schemas.control import ControlKind
from taximeter_schemas.errors import AmountError, SchemaError
from taximeter_schemas.money import price_per_token_pico, to_pico
from taximeter_schemas.rate_cards import RateCard
from taximeter_schemas.tenants import AlertEndpoint, CachePool, Tenant

# When a version is first recorded, the moment of recording takes this one's place.
UNRECORDED = datetime(1970, 1, 1, tzinfo=UTC)
_TAGS = {"model", "adapter", "feature", "operation", "service_tier"}


def read_file(path: Path) -> list[Declared]:
    """Read a YAML file. Raises DeclarationError, which names the place in the file."""
    return read_mapping(load(path), str(path))


def read_mapping(content: Any, name: str = "declarations") -> list[Declared]:
    """Turn the content of a declarations file into what travels. Raises DeclarationError."""
    if not isinstance(content, Mapping):
        raise DeclarationError(
            f"{name}: not a mapping of tenants, budgets, rate_cards, cache_pools, cache_policies, alert_endpoints"
        )
    unknown = set(content) - set(_SECTIONS)
    if unknown:
        raise DeclarationError(
            f"{name}: unknown section {', '.join(sorted(map(str, unknown)))}; there are: {', '.join(_SECTIONS)}"
        )
    declared: list[Declared] = []
    for section, read in _SECTIONS.items():
        entries = content.get(section) or []
        if not isinstance(entries, list):
            raise DeclarationError(f"{name}: {section} is not a list")
        for index, entry in enumerate(entries):
            place = f"{name}: {section}[{index}]"
            if not isinstance(entry, Mapping):
                raise DeclarationError(f"{place}: not a mapping")
            try:
                declared.append(read(dict(entry)))
            except ValidationError as error:
                raise DeclarationError(f"{place}: {describe(error)}") from None
            except DeclarationError as error:
                raise DeclarationError(f"{place}.{error}") from None
            except SchemaError as error:
                raise DeclarationError(f"{place}: {error}") from None
    check_references(declared, name)
    resolved = with_pools(declared, name)
    check_pools(resolved, name)
    return resolved


def _body(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json")


def _amount(entry: dict[str, Any], field: str, convert: Callable[[str | int | Decimal], int]) -> int:
    """An amount as whole pico-units. Raises DeclarationError that begins with the field."""
    value = entry.get(field)
    if isinstance(value, float):
        raise DeclarationError(f'{field}: {value!r} is not exact; quote it: "{value}"')
    if not isinstance(value, str | int):
        raise DeclarationError(f"{field}: an amount is needed, as a quoted decimal")
    try:
        return convert(value)
    except AmountError as error:
        raise DeclarationError(f"{field}: {error}") from None


def _tenant(entry: dict[str, Any]) -> Declared:
    tenant = Tenant.model_validate(entry)
    return Declared(ControlKind.TENANT, tenant.id, _body(tenant))


def _budget(entry: dict[str, Any]) -> Declared:
    entry["limit_pico"] = _amount(entry, "limit", to_pico)
    entry.pop("limit")
    budget = Budget.model_validate(entry)
    return Declared(ControlKind.BUDGET, budget.id, _body(budget))


def _rate_card(entry: dict[str, Any]) -> Declared:
    prices = [_price_at(index, price) for index, price in enumerate(_listed(entry, "prices"))]
    card = RateCard.model_validate({**entry, "recorded_at": UNRECORDED, "prices": prices})
    return Declared(ControlKind.RATE_CARD, card.name, _body(card))


def _listed(entry: dict[str, Any], field: str) -> list[Any]:
    value = entry.pop(field, None)
    if not isinstance(value, list) or not value:
        raise DeclarationError(f"{field}: a list is needed")
    return value


def _price_at(index: int, entry: object) -> dict[str, Any]:
    try:
        if not isinstance(entry, dict):
            raise DeclarationError("model: a mapping is needed")
        return _price(entry)
    except DeclarationError as error:
        raise DeclarationError(f"prices[{index}].{error}") from None


def _price(entry: dict[str, Any]) -> dict[str, Any]:
    """Prices a million tokens become pico-units a token; `request` is a price for each request."""
    converted = {name: value for name, value in entry.items() if name in _TAGS}
    for name in entry:
        if name not in _TAGS:
            converted[name] = _amount(entry, name, to_pico if name == "request" else price_per_token_pico)
    full = converted.get("uncached_input")
    for name, amount in converted.items():
        # A read that costs more than none makes savings negative, and no policy can share those.
        if name.startswith("cache_read_") and full is not None and amount > full:
            raise DeclarationError(f"{name}: a cache read is dearer than uncached input")
    return converted


def _cache_pool(entry: dict[str, Any]) -> Declared:
    pool = CachePool.model_validate(entry)
    return Declared(ControlKind.CACHE_POOL, pool.id, _body(pool))


def _cache_policy(entry: dict[str, Any]) -> Declared:
    policy = load_cache_policy(entry, {})
    return Declared(ControlKind.CACHE_POLICY, policy.id, {**entry, "id": policy.id, "version": policy.version})


def _alert_endpoint(entry: dict[str, Any]) -> Declared:
    endpoint = AlertEndpoint.model_validate(entry)
    return Declared(ControlKind.ALERT_ENDPOINT, endpoint.id, _body(endpoint))


_SECTIONS: dict[str, Callable[[dict[str, Any]], Declared]] = {
    "rate_cards": _rate_card,
    "cache_policies": _cache_policy,
    "cache_pools": _cache_pool,
    "tenants": _tenant,
    "budgets": _budget,
    "alert_endpoints": _alert_endpoint,
}
