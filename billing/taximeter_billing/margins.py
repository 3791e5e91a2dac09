"""The margins of a month so far: what is owed for it, and what it cost by the declared cost cards. Nothing is written.

Both come from sums that ClickHouse makes: no event is read.
"""

from dataclasses import dataclass, field

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from taximeter_billing.computing import compute_groups
from taximeter_billing.declarations.state import Group, in_batches, read_state
from taximeter_billing.domain.margin import Costs, Key, Margin, margins_of
from taximeter_billing.errors import NotFoundError
from taximeter_billing.seeing import look, spans_of_usage
from taximeter_billing.usage_sums import summed_usage
from taximeter_billing.warehouse import UsageReader
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
    for groups in in_batches(state.groups()):
        wanted = [(group, own) for group in groups if (own := _wanted(group, only))]
        if not wanted:
            continue
        every = [group for group, _own in wanted]
        seen = look(reader, [tenant for group in every for tenant in group.tenants], label, cards=state.cards)
        computed = compute_groups(reader, state, wanted, seen)
        found.blocked.update(computed.blocked)
        for currency in sorted({group.currency for group in every}):
            of_currency = [group for group in every if group.currency == currency]
            charges = {
                tenant.id: computed.charges[tenant.id]
                for group in of_currency
                for tenant in group.tenants
                if tenant.id in computed.charges
            }
            spans = [span for span in spans_of_usage(of_currency, seen) if span.tenant in charges]
            usage = summed_usage(reader.client, spans, costs.cards, {"": costs.cuts}) if spans else ()
            found.margins.update(margins_of(charges, usage, costs, currency))
    return found


def _wanted(group: Group, only: str | None) -> set[str]:
    return {tenant.id for tenant in group.tenants if only in (None, tenant.id)}
