"""What is declared, as billing uses it: now, or as it was when an invoice was computed."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from taximeter_billing.book import DeclaredRow, InvoiceRow
from taximeter_billing.declarations.applying import current
from taximeter_billing.domain.contracts import Agreement, Contract, CreditGrant, Plan, agreement
from taximeter_schemas.cache_policies import DEFAULT_CACHE_POLICY, CachePolicy, load_cache_policy
from taximeter_schemas.control import ControlKind
from taximeter_schemas.rate_cards import RateCard
from taximeter_schemas.tenants import Tenant

BATCH_TENANTS = 100
"""Tenants that are looked at together, and kept in one transaction."""

_SETTLING = (ControlKind.TENANT, ControlKind.CACHE_POLICY)


@dataclass(frozen=True, slots=True)
class Group:
    """Tenants that are settled together: one cache pool, one policy for what it saved, one currency. What stands in the way of
    one of them may hold the others of its pool, and nobody else."""

    policy: CachePolicy
    currency: str
    tenants: tuple[Tenant, ...]


@dataclass(frozen=True, slots=True)
class State:
    """Everything declared that an invoice depends on, up to one entry of the book. `agreements` and `grants` are by tenant."""

    tenants: Mapping[str, Tenant]
    cards: list[RateCard]
    policies: Mapping[str, CachePolicy]
    agreements: Mapping[str, list[Agreement]]
    grants: Mapping[str, list[CreditGrant]]
    cost_cards: list[RateCard]
    through: int = 0

    def currency(self, tenant: Tenant) -> str:
        """Usage is priced, and so invoiced, in the currency of the tenant's rate card."""
        return next((card.currency for card in self.cards if card.id == tenant.rate_card), tenant.currency)

    def groups(self) -> Iterator[Group]:
        """All tenants, in the groups that settle together."""
        members: dict[tuple[str, str, str], list[Tenant]] = defaultdict(list)
        currencies = {card.id: card.currency for card in reversed(self.cards)}
        for tenant in self.tenants.values():
            currency = currencies.get(tenant.rate_card, tenant.currency)
            members[tenant.cache_policy, currency, tenant.pool].append(tenant)
        for (policy, currency, _pool), tenants in sorted(members.items()):
            yield Group(self.policies.get(policy, DEFAULT_CACHE_POLICY), currency, tuple(tenants))

    def by_tenant(self) -> dict[str, Group]:
        """Each tenant's group."""
        return {tenant.id: group for group in self.groups() for tenant in group.tenants}


def in_batches(groups: Iterable[Group]) -> Iterator[list[Group]]:
    """Whole groups, about BATCH_TENANTS tenants at a time."""
    batch: list[Group] = []
    for group in groups:
        if batch and sum(len(one.tenants) for one in (*batch, group)) > BATCH_TENANTS:
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


def state_of(session: Session, invoice: InvoiceRow) -> State:
    """What was declared when an invoice was computed."""
    if invoice.declared_through:
        return state_at(session, invoice.declared_through)
    return _state(session, current(session, as_of=invoice.drafted_at), 0)


def state_at(session: Session, entry: int) -> State:
    """What was declared up to one entry of the book."""
    return _state(session, current(session, through=entry), entry)


def settling_entry(session: Session, through: int, as_of: datetime | None = None) -> int:
    """The last entry, up to one or to a time, that says who settles with whom and how: a tenant or a cache policy."""
    statement = select(func.max(DeclaredRow.id)).where(DeclaredRow.kind.in_(_SETTLING))
    until = DeclaredRow.id <= through if as_of is None else DeclaredRow.recorded_at <= as_of
    return session.scalar(statement.where(until)) or 0


def read_state(session: Session) -> State:
    """What is declared now."""
    through = session.scalar(select(func.max(DeclaredRow.id))) or 0
    return _state(session, current(session, through=through), through)


def _state(session: Session, things: Mapping[tuple[ControlKind, str], dict[str, Any]], through: int) -> State:
    """Cards are always all that are known: they never change, and an event may have been rated by one that came later."""
    everything = current(session)
    policies: dict[str, CachePolicy] = {"default": DEFAULT_CACHE_POLICY}
    for key, body in _of(things, ControlKind.CACHE_POLICY):
        policies[key] = load_cache_policy(body, {})
    plans = {key: Plan.model_validate(body) for key, body in _of(things, ControlKind.PLAN)}
    agreements: dict[str, list[Agreement]] = defaultdict(list)
    for _, body in _of(things, ControlKind.CONTRACT):
        contract = Contract.model_validate(body)
        agreements[contract.tenant].append(agreement(contract, plans))
    grants: dict[str, list[CreditGrant]] = defaultdict(list)
    for _, body in _of(things, ControlKind.CREDIT_GRANT):
        grant = CreditGrant.model_validate(body)
        grants[grant.tenant].append(grant)
    return State(
        tenants={key: Tenant.model_validate(body) for key, body in _of(things, ControlKind.TENANT)},
        cards=[RateCard.model_validate(body) for _, body in _of(everything, ControlKind.RATE_CARD)],
        policies=policies,
        agreements=dict(agreements),
        grants=dict(grants),
        cost_cards=[RateCard.model_validate(body) for _, body in _of(everything, ControlKind.COST_CARD)],
        through=through,
    )


def _of(
    things: Mapping[tuple[ControlKind, str], dict[str, Any]], kind: ControlKind
) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((key, body) for (held, key), body in sorted(things.items()) if held is kind)
