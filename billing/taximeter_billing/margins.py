"""The margins of a month so far: what is owed for it, and what it cost by the declared cost cards. Nothing is written."""

from dataclasses import dataclass, field

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from taximeter_billing.computing import Computed, compute, look
from taximeter_billing.declarations.state import read_state
from taximeter_billing.domain.margin import Costs, Key, Margin, margins_of
from taximeter_billing.errors import NotFoundError
from taximeter_billing.warehouse import ANY_TIME, TenantSpan, UsageReader
from taximeter_schemas.periods import billing_month


@dataclass(frozen=True, slots=True)
class Margins:
    """By tenant, feature and model; `blocked`: tenants whose revenue cannot be computed, and why."""

    margins: dict[Key, Margin] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)

    @property
    def negative(self) -> dict[Key, Margin]:
        """Where it cost more than it earned."""
        return {key: margin for key, margin in self.margins.items() if margin.negative}


def margins_of_month(book: Engine, reader: UsageReader, label: str, only: str | None = None) -> Margins:
    """Compute. Raises PeriodError for what is no month, NotFoundError when no cost card is declared."""
    billing_month(label, "UTC")
    with Session(book) as session:
        state = read_state(session)
    if not state.cost_cards:
        raise NotFoundError("no cost card is declared; declare what models cost under cost_cards")
    costs = Costs(state.cost_cards)
    found = Margins()
    for group in state.groups():
        wanted = {tenant.id for tenant in group.tenants if only in (None, tenant.id)}
        if not wanted:
            continue
        seen = look(reader, group.tenants, label, cards=state.cards)
        computed: Computed = compute(reader, state, group, wanted, seen)
        found.blocked.update(computed.blocked)
        until = seen.until(group) or ANY_TIME
        spans = [
            TenantSpan(tenant, seen.periods[tenant].start, seen.periods[tenant].end, until)
            for tenant in sorted(computed.charges)
        ]
        rows = reader.rows(spans) if spans else ()
        found.margins.update(margins_of(computed.charges, rows, costs, group.currency))
    return found
