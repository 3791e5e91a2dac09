"""Reads declarations into the models that travel. Amounts are quoted decimals in major units; a float is refused."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from taximeter_billing.declarations import agreements
from taximeter_billing.declarations.amounts import amount
from taximeter_billing.declarations.declared import Declared
from taximeter_billing.declarations.prices import read_rate_card
from taximeter_billing.declarations.references import check_pools, check_references, with_pools
from taximeter_billing.declarations.yaml_file import load
from taximeter_billing.errors import DeclarationError
from taximeter_schemas.budgets import Budget
from taximeter_schemas.cache_policies import load_cache_policy
from taximeter_schemas.cache_uses import describe
from taximeter_schemas.control import ControlKind
from taximeter_schemas.errors import SchemaError
from taximeter_schemas.money import to_pico
from taximeter_schemas.tenants import AlertEndpoint, CachePool, Tenant


def read_file(path: Path) -> list[Declared]:
    """Read a YAML file. Raises DeclarationError, which names the place in the file."""
    return read_mapping(load(path), str(path))


def read_mapping(content: Any, name: str = "declarations") -> list[Declared]:
    """Turn the content of a declarations file into what travels. Raises DeclarationError."""
    if not isinstance(content, Mapping):
        raise DeclarationError(
            f"{name}: not a mapping of tenants, budgets, rate_cards, cache_pools, cache_policies, alert_endpoints, contracts"
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


def _tenant(entry: dict[str, Any]) -> Declared:
    tenant = Tenant.model_validate(entry)
    return Declared(ControlKind.TENANT, tenant.id, _body(tenant))


def _budget(entry: dict[str, Any]) -> Declared:
    entry["limit_pico"] = amount(entry, "limit", to_pico)
    entry.pop("limit")
    budget = Budget.model_validate(entry)
    return Declared(ControlKind.BUDGET, budget.id, _body(budget))


def _rate_card(entry: dict[str, Any]) -> Declared:
    card = read_rate_card(entry)
    return Declared(ControlKind.RATE_CARD, card.name, _body(card))


def _cache_pool(entry: dict[str, Any]) -> Declared:
    pool = CachePool.model_validate(entry)
    return Declared(ControlKind.CACHE_POOL, pool.id, _body(pool))


def _cache_policy(entry: dict[str, Any]) -> Declared:
    policy = load_cache_policy(entry, {})
    return Declared(ControlKind.CACHE_POLICY, policy.id, {**entry, "id": policy.id, "version": policy.version})


def _plan(entry: dict[str, Any]) -> Declared:
    plan = agreements.read_plan(entry)
    return Declared(ControlKind.PLAN, plan.id, agreements.body(plan))


def _contract(entry: dict[str, Any]) -> Declared:
    contract = agreements.read_contract(entry)
    return Declared(ControlKind.CONTRACT, contract.id, agreements.body(contract))


def _credit(entry: dict[str, Any]) -> Declared:
    grant = agreements.read_credit(entry)
    return Declared(ControlKind.CREDIT_GRANT, grant.id, agreements.body(grant))


def _cost_card(entry: dict[str, Any]) -> Declared:
    card = read_rate_card(entry)
    if card.stores:
        raise DeclarationError("prices: a cost card has no cache_storage: it says what an event costs us")
    return Declared(ControlKind.COST_CARD, card.name, _body(card))


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
    "plans": _plan,
    "contracts": _contract,
    "credits": _credit,
    "cost_cards": _cost_card,
}
