"""What a month would have cost under another rate card or cache policy: by tenant, and who would complain. Nothing is written."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from decimal import Decimal

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from taximeter_billing.computing import Extra, compute
from taximeter_billing.declarations.state import Group, State, read_state
from taximeter_billing.domain.rerating import Rerating
from taximeter_billing.ledger import instances
from taximeter_billing.seeing import look
from taximeter_billing.warehouse import UsageReader
from taximeter_schemas.cache_policies import CachePolicy
from taximeter_schemas.periods import billing_month
from taximeter_schemas.rate_cards import RateCard


@dataclass(frozen=True, slots=True)
class Difference:
    """What a tenant owes as things are, and what it would owe, before credits, in pico-units."""

    tenant: str
    currency: str
    now_pico: int
    then_pico: int

    @property
    def change_pico(self) -> int:
        """What it would owe more."""
        return self.then_pico - self.now_pico

    @property
    def change_percent(self) -> Decimal | None:
        """The same in percent, to a tenth; None where it owes nothing now."""
        if not self.now_pico:
            return None
        return (Decimal(self.change_pico) * 100 / Decimal(self.now_pico)).quantize(Decimal("0.1"))


@dataclass(frozen=True, slots=True)
class WhatIf:
    """By tenant, those who would pay most more first. `blocked`: tenants for whom it cannot be said, and why."""

    differences: list[Difference] = field(default_factory=list)
    blocked: dict[str, str] = field(default_factory=dict)

    @property
    def complaints(self) -> list[Difference]:
        """Who would pay more."""
        return [difference for difference in self.differences if difference.change_pico > 0]


def what_if(
    book: Engine,
    reader: UsageReader,
    label: str,
    *,
    card: RateCard | None = None,
    policy: CachePolicy | None = None,
    only: str | None = None,
) -> WhatIf:
    """Compute the month twice. The card is for tenants whose card has its id; where none has, for all in its currency.

    Raises PeriodError for what is no month.
    """
    billing_month(label, "UTC")
    with Session(book) as session:
        state = read_state(session)
    moved = _moved(state, card)
    found = WhatIf()
    for group in state.groups():
        wanted = {tenant.id for tenant in group.tenants if only in (None, tenant.id)}
        if wanted:
            _compare(reader, state, group, wanted, label, card, policy, moved, found)
    found.differences.sort(key=lambda one: (-one.change_pico, one.tenant))
    return found


def _moved(state: State, card: RateCard | None) -> set[str]:
    """Tenants that the card is for."""
    if card is None:
        return set()
    of_id = {tenant.id for tenant in state.tenants.values() if tenant.rate_card == card.id}
    same = {tenant.id for tenant in state.tenants.values() if state.currency(tenant) == card.currency}
    return of_id & same if of_id else same


def _compare(
    reader: UsageReader,
    state: State,
    group: Group,
    wanted: Collection[str],
    label: str,
    card: RateCard | None,
    policy: CachePolicy | None,
    moved: set[str],
    found: WhatIf,
) -> None:
    cards = state.cards if card is None else [*state.cards, card]
    seen = look(reader, group.tenants, label, cards=cards)
    # What grants pay is no part of what is owed; they only cut the period into spans, in both runs alike.
    extra = Extra(
        {
            tenant: tuple(grant for _, grant in instances(state.grants.get(tenant, []), seen.periods[tenant].end))
            for tenant in wanted
        }
    )
    now = compute(reader, state, group, wanted, seen, extra)
    then_group = group if policy is None else replace(group, policy=policy)
    then_state = state if card is None else replace(state, cards=cards)
    rerating = Rerating(card) if card is not None else None
    then = compute(
        reader,
        then_state,
        then_group,
        wanted,
        seen,
        extra,
        (lambda row: rerating(row) if row.tenant in moved else row) if rerating else None,
    )
    for tenant in sorted(wanted):
        if (reason := now.blocked.get(tenant) or then.blocked.get(tenant)) is not None:
            # Who used nothing has no part in what stands in the way of its pool, and owes the same either way.
            if seen.sets[tenant].events or (tenant in seen.stored and seen.stored[tenant].events):
                found.blocked[tenant] = reason
        elif tenant in now.invoices or tenant in then.invoices:
            owed = [run.invoices[tenant].owed_pico if tenant in run.invoices else 0 for run in (now, then)]
            found.differences.append(Difference(tenant, group.currency, *owed))
