"""Months in which a tenant used something, or has to pay for what it kept in cache, and for which it has no invoice: late usage
of such a month is on no invoice that a true-up could go with, so whoever closes a month is told which others to close."""

from collections import defaultdict
from collections.abc import Collection, Iterable

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from taximeter_billing.book import InvoiceRow
from taximeter_billing.computing import compute_groups
from taximeter_billing.declarations.state import State
from taximeter_billing.seeing import look
from taximeter_billing.true_ups import first_month
from taximeter_billing.warehouse import TenantSpan, UsageReader
from taximeter_schemas.periods import billing_month
from taximeter_schemas.tenants import Tenant


def months_without_invoice(
    book: Engine, reader: UsageReader, label: str, tenants: Iterable[Tenant], state: State
) -> dict[str, list[str]]:
    """By month before `label`, as far back as late usage is looked for, the tenants that used something and have no invoice, not
    even a draft. Where cards have a price for keeping blocks, also those who owe something for what lay in cache in a month that
    was over before we knew of it."""
    storing = [card.name for card in state.cards if card.stores]
    by_zone: dict[str, list[str]] = defaultdict(list)
    for tenant in tenants:
        by_zone[tenant.time_zone].append(tenant.id)
    invoiced = _invoiced(book, label, {name for names in by_zone.values() for name in names})
    found: dict[str, set[str]] = defaultdict(set)
    keeping: dict[str, set[str]] = defaultdict(set)
    for zone, names in sorted(by_zone.items()):
        start, end = billing_month(first_month(label), zone).start, billing_month(label, zone).start
        for name, months in reader.used_months(names, zone, start, end).items():
            for month in months:
                period = billing_month(month, zone)
                span = TenantSpan(name, period.start, period.end)
                if (name, month) not in invoiced and reader.event_sets([span])[name].events:
                    found[month].add(name)
        kept = reader.late_block_months(names, storing, start, end) if storing else {}
        for name, months in kept.items():
            for month in months:
                if first_month(label) <= month < label and (name, month) not in invoiced:
                    keeping[month].add(name)
    for month, kept_by in keeping.items():
        found[month] |= _owing(reader, state, month, kept_by - found[month])
    return {month: sorted(names) for month, names in sorted(found.items()) if names}


def _owing(reader: UsageReader, state: State, label: str, names: Collection[str]) -> set[str]:
    """Those of the tenants that the month would give an invoice to pay, or for whom it cannot be computed."""
    wanted = [
        (group, own) for group in state.groups() if (own := {one.id for one in group.tenants}.intersection(names))
    ]
    if not wanted:
        return set()
    seen = look(reader, [tenant for group, _own in wanted for tenant in group.tenants], label, cards=state.cards)
    computed = compute_groups(reader, state, wanted, seen)
    return {name for name, invoice in computed.invoices.items() if invoice.owed_pico} | set(computed.blocked)


def _invoiced(book: Engine, label: str, tenants: Collection[str]) -> set[tuple[str, str]]:
    statement = select(InvoiceRow.tenant, InvoiceRow.period).where(
        InvoiceRow.status != "void", InvoiceRow.period < label, InvoiceRow.tenant.in_(tenants)
    )
    with Session(book) as session:
        return {(tenant, period) for tenant, period in session.execute(statement)}
