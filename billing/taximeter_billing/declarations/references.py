"""What declarations say about each other: nothing twice, nothing missing, one currency from budget to rate card. Pure."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from taximeter_billing.declarations.declared import Declared
from taximeter_billing.domain.contracts import Contract, CreditGrant
from taximeter_billing.errors import DeclarationError
from taximeter_schemas.control import ControlKind

DEFAULT_POLICY = "default"
"""The cache-savings policy that is there without being declared."""


def check_references(declared: Sequence[Declared], name: str) -> None:
    """Raises DeclarationError, which names the two things that do not agree."""
    for problem in _problems(declared):
        raise DeclarationError(f"{name}: {problem}")


def with_pools(declared: Sequence[Declared], name: str) -> list[Declared]:
    """A tenant that a pool lists belongs to it. Raises DeclarationError where the tenant names another."""
    member_of = {
        tenant: thing.key
        for thing in declared
        if thing.kind is ControlKind.CACHE_POOL
        for tenant in thing.body["tenants"]
    }
    resolved = []
    for thing in declared:
        pool = member_of.get(thing.key) if thing.kind is ControlKind.TENANT else None
        if pool is None:
            resolved.append(thing)
            continue
        if thing.body["cache_pool"] not in (None, pool):
            raise DeclarationError(
                f"{name}: tenant {thing.key} names the cache pool {thing.body['cache_pool']!r}, and {pool!r} lists it"
            )
        resolved.append(Declared(thing.kind, thing.key, {**thing.body, "cache_pool": pool}))
    return resolved


def check_pools(declared: Sequence[Declared], name: str) -> None:
    """Tenants of one pool settle what it saved between them: by one policy, in one currency. Raises DeclarationError."""
    first: dict[str, Declared] = {}
    for tenant in _of(declared, ControlKind.TENANT):
        pool = tenant.body["cache_pool"]
        other = first.setdefault(pool, tenant) if pool else tenant
        for field in ("cache_policy", "currency"):
            if tenant.body[field] != other.body[field]:
                raise DeclarationError(
                    f"{name}: tenants {other.key} and {tenant.key} share the cache pool {pool!r}, so they need one {field}"
                )


def _problems(declared: Sequence[Declared]) -> Iterator[str]:
    tenants = {thing.key: thing.body for thing in _of(declared, ControlKind.TENANT)}
    currencies: dict[str, str] = {}
    yield from _twice(declared)
    for card in _of(declared, ControlKind.RATE_CARD):
        currency = currencies.setdefault(card.body["id"], card.body["currency"])
        if card.body["currency"] != currency:
            yield f"rate card {card.body['id']} has versions in {currency} and in {card.body['currency']}"
    yield from _storage_problems(declared, tenants)
    pools = {thing.key for thing in _of(declared, ControlKind.CACHE_POOL)}
    policies = {thing.key for thing in _of(declared, ControlKind.CACHE_POLICY)} | {DEFAULT_POLICY}
    for tenant, body in tenants.items():
        if (card_id := body["rate_card"]) not in currencies:
            yield f"tenant {tenant} names the rate card {card_id!r}, which is not declared"
        elif body["currency"] != currencies[card_id]:
            yield f"tenant {tenant} pays in {body['currency']}, its rate card {card_id} is in {currencies[card_id]}"
        if body["cache_policy"] not in policies:
            yield f"tenant {tenant} names the cache policy {body['cache_policy']!r}, which is not declared"
        if body["cache_pool"] is not None and body["cache_pool"] not in pools:
            yield f"tenant {tenant} names the cache pool {body['cache_pool']!r}, which is not declared"
    for thing in declared:
        yield from _owner_problems(thing, tenants)
    yield from _contract_problems(declared, tenants)


def _storage_problems(declared: Sequence[Declared], tenants: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Where keeping blocks in cache has a price, the policy says how long they stay."""
    priced = {
        card.body["id"]
        for card in _of(declared, ControlKind.RATE_CARD)
        if any(price["cache_storage"] for price in card.body["prices"])
    }
    limited = {thing.key for thing in _of(declared, ControlKind.CACHE_POLICY) if thing.body.get("ttl_seconds")}
    for tenant, body in tenants.items():
        if body["rate_card"] in priced and body["cache_policy"] not in limited:
            yield (
                f"tenant {tenant}: its rate card {body['rate_card']} has a price for cache storage, so its cache policy"
                f" {body['cache_policy']} needs ttl_seconds: how long a block that nobody uses stays"
            )


def _contract_problems(declared: Sequence[Declared], tenants: dict[str, dict[str, Any]]) -> Iterator[str]:
    plans = {thing.key for thing in _of(declared, ControlKind.PLAN)}
    spans: dict[str, list[tuple[datetime, datetime, str]]] = {}
    for thing in _of(declared, ControlKind.CONTRACT):
        contract = Contract.model_validate(thing.body)
        if contract.tenant not in tenants:
            yield f"contract {thing.key} names the tenant {contract.tenant!r}, which is not declared"
        if contract.plan is not None and contract.plan not in plans:
            yield f"contract {thing.key} names the plan {contract.plan!r}, which is not declared"
        ends = contract.ends or datetime.max.replace(tzinfo=UTC)
        spans.setdefault(contract.tenant, []).append((contract.starts, ends, contract.id))
    for tenant, held in spans.items():
        for (_, ends, one), (starts, _, other) in pairwise(sorted(held)):
            if starts < ends:
                yield f"contracts {one} and {other} of tenant {tenant} overlap"
    for thing in _of(declared, ControlKind.CREDIT_GRANT):
        grant = CreditGrant.model_validate(thing.body)
        if (owner := tenants.get(grant.tenant)) is None:
            yield f"credit {thing.key} names the tenant {grant.tenant!r}, which is not declared"
        elif owner["currency"] != grant.currency:
            yield f"credit {thing.key} is in {grant.currency}, its tenant pays in {owner['currency']}"


def _owner_problems(thing: Declared, tenants: dict[str, dict[str, Any]]) -> Iterator[str]:
    if thing.kind in {ControlKind.BUDGET, ControlKind.ALERT_ENDPOINT} and thing.body["tenant"] is not None:
        owner = tenants.get(thing.body["tenant"])
        if owner is None:
            yield f"{thing.kind} {thing.key} names the tenant {thing.body['tenant']!r}, which is not declared"
        elif thing.kind is ControlKind.BUDGET and thing.body["currency"] != owner["currency"]:
            yield f"budget {thing.key} is in {thing.body['currency']}, its tenant pays in {owner['currency']}"


def _twice(declared: Sequence[Declared]) -> Iterator[str]:
    seen: set[tuple[str, str]] = set()
    member_of: dict[str, str] = {}
    tenants = {thing.key for thing in _of(declared, ControlKind.TENANT)}
    for thing in declared:
        if (thing.kind, thing.key) in seen:
            yield f"{thing.kind} {thing.key} is declared twice"
        seen.add((thing.kind, thing.key))
        for tenant in thing.body["tenants"] if thing.kind is ControlKind.CACHE_POOL else ():
            if tenant not in tenants:
                yield f"cache pool {thing.key} lists the tenant {tenant!r}, which is not declared"
            if member_of.setdefault(tenant, thing.key) != thing.key:
                yield f"tenant {tenant} is in two cache pools: {member_of[tenant]} and {thing.key}"


def _of(declared: Sequence[Declared], kind: ControlKind) -> Iterator[Declared]:
    return (thing for thing in declared if thing.kind is kind)
