"""Reads declarations into the models that travel. Amounts are quoted decimals in major units; a float is refused."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from taximeter_billing.errors import DeclarationError
from taximeter_schemas.budgets import Budget
from taximeter_schemas.cache_policies import load_cache_policy
from taximeter_schemas.control import ControlKind
from taximeter_schemas.errors import SchemaError
from taximeter_schemas.money import price_per_token_pico, to_pico
from taximeter_schemas.rate_cards import RateCard
from taximeter_schemas.tenants import AlertEndpoint, CachePool, Tenant

# When a version is first recorded, the moment of recording takes this one's place.
UNRECORDED = datetime(1970, 1, 1, tzinfo=UTC)
_TAGS = {"model", "adapter", "feature", "operation", "service_tier"}


@dataclass(frozen=True, slots=True)
class Declared:
    """One declared thing: its kind, its id, and its body as it will travel."""

    kind: ControlKind
    key: str
    body: dict[str, Any]


def read_file(path: Path) -> list[Declared]:
    """Read a YAML file. Raises DeclarationError, which names the place in the file."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DeclarationError(f"{path}: {error}") from None
    return read_mapping(content, str(path))


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
        for index, entry in enumerate(content.get(section) or []):
            place = f"{name}: {section}[{index}]"
            if not isinstance(entry, Mapping):
                raise DeclarationError(f"{place}: not a mapping")
            try:
                declared.append(read(dict(entry)))
            except ValidationError as error:
                raise DeclarationError(f"{place}: {_first_problem(error)}") from None
            except (SchemaError, KeyError, TypeError, ValueError) as error:
                raise DeclarationError(f"{place}: {error}") from None
    _check_references(declared, name)
    return _with_pools(declared)


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"


def _body(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json")


def _amount(entry: dict[str, Any], field: str, convert: Callable[[str | int | Decimal], int]) -> int:
    value = entry[field]
    if isinstance(value, float):
        raise DeclarationError(f'{field}: {value!r} is not exact; quote it: "{value}"')
    return convert(value)


def _tenant(entry: dict[str, Any]) -> Declared:
    tenant = Tenant.model_validate(entry)
    return Declared(ControlKind.TENANT, tenant.id, _body(tenant))


def _budget(entry: dict[str, Any]) -> Declared:
    entry["limit_pico"] = _amount(entry, "limit", to_pico)
    del entry["limit"]
    budget = Budget.model_validate(entry)
    return Declared(ControlKind.BUDGET, budget.id, _body(budget))


def _rate_card(entry: dict[str, Any]) -> Declared:
    prices = [_price(dict(price)) for price in entry.pop("prices")]
    card = RateCard.model_validate({**entry, "recorded_at": UNRECORDED, "prices": prices})
    return Declared(ControlKind.RATE_CARD, card.name, _body(card))


def _price(entry: dict[str, Any]) -> dict[str, Any]:
    """Prices a million tokens become pico-units a token; `request` is a price for each request."""
    converted = {name: value for name, value in entry.items() if name in _TAGS}
    for name in entry:
        if name not in _TAGS:
            converted[name] = _amount(entry, name, to_pico if name == "request" else price_per_token_pico)
    return converted


def _cache_pool(entry: dict[str, Any]) -> Declared:
    pool = CachePool.model_validate(entry)
    return Declared(ControlKind.CACHE_POOL, pool.id, _body(pool))


def _cache_policy(entry: dict[str, Any]) -> Declared:
    key = str(entry["id"])
    load_cache_policy(entry, {})
    return Declared(ControlKind.CACHE_POLICY, key, entry)


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


def _check_references(declared: list[Declared], name: str) -> None:
    """Nothing is declared twice, and what one thing names is declared too."""
    seen: set[tuple[str, str]] = set()
    for thing in declared:
        if (thing.kind, thing.key) in seen:
            raise DeclarationError(f"{name}: {thing.kind} {thing.key} is declared twice")
        seen.add((thing.kind, thing.key))
    tenants = {thing.key for thing in declared if thing.kind is ControlKind.TENANT}
    cards = {thing.key.rpartition("@")[0] for thing in declared if thing.kind is ControlKind.RATE_CARD}
    for thing in declared:
        owner = thing.body.get("tenant") if thing.kind in {ControlKind.BUDGET, ControlKind.ALERT_ENDPOINT} else None
        if owner is not None and owner not in tenants:
            raise DeclarationError(
                f"{name}: {thing.kind} {thing.key} names the tenant {owner!r}, which is not declared"
            )
        if thing.kind is ControlKind.TENANT and (card := thing.body["rate_card"]) not in cards:
            raise DeclarationError(f"{name}: tenant {thing.key} names the rate card {card!r}, which is not declared")


def _with_pools(declared: list[Declared]) -> list[Declared]:
    """A tenant listed in a pool belongs to it."""
    member_of: dict[str, str] = {}
    for thing in declared:
        for tenant in thing.body["tenants"] if thing.kind is ControlKind.CACHE_POOL else ():
            if tenant in member_of:
                raise DeclarationError(f"tenant {tenant} is in two cache pools: {member_of[tenant]} and {thing.key}")
            member_of[tenant] = thing.key
    return [
        Declared(thing.kind, thing.key, {**thing.body, "cache_pool": member_of[thing.key]})
        if thing.kind is ControlKind.TENANT and thing.key in member_of and not thing.body.get("cache_pool")
        else thing
        for thing in declared
    ]
