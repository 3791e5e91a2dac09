"""Months in which a tenant used something, or kept it in cache, and for which it has no invoice: late usage of such a month is on
no invoice that a true-up could go with, so whoever closes a month is told which others to close."""

from collections import defaultdict
from collections.abc import Collection, Iterable

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from taximeter_billing.book import InvoiceRow
from taximeter_billing.true_ups import first_month
from taximeter_billing.warehouse import TenantSpan, UsageReader
from taximeter_schemas.periods import billing_month
from taximeter_schemas.rate_cards import RateCard
from taximeter_schemas.tenants import Tenant


def months_without_invoice(
    book: Engine, reader: UsageReader, label: str, tenants: Iterable[Tenant], cards: Iterable[RateCard]
) -> dict[str, list[str]]:
    """By month before `label`, as far back as late usage is looked for, the tenants that used something and have no invoice, not
    even a draft. Where cards have a price for keeping blocks, also those whose blocks may have lain in cache in a month that was
    over before we knew of them."""
    storing = [card.name for card in cards if card.stores]
    by_zone: dict[str, list[str]] = defaultdict(list)
    for tenant in tenants:
        by_zone[tenant.time_zone].append(tenant.id)
    invoiced = _invoiced(book, label, {name for names in by_zone.values() for name in names})
    found: dict[str, set[str]] = defaultdict(set)
    for zone, names in sorted(by_zone.items()):
        start, end = billing_month(first_month(label), zone).start, billing_month(label, zone).start
        for name, months in reader.used_months(names, zone, start, end).items():
            for month in months:
                period = billing_month(month, zone)
                span = TenantSpan(name, period.start, period.end)
                if (name, month) not in invoiced and reader.event_sets([span])[name].events:
                    found[month].add(name)
        kept = reader.late_block_months(names, storing, zone, start, end) if storing else {}
        for name, months in kept.items():
            for month in months:
                if month < label and (name, month) not in invoiced:
                    found[month].add(name)
    return {month: sorted(names) for month, names in sorted(found.items())}


def _invoiced(book: Engine, label: str, tenants: Collection[str]) -> set[tuple[str, str]]:
    statement = select(InvoiceRow.tenant, InvoiceRow.period).where(
        InvoiceRow.status != "void", InvoiceRow.period < label, InvoiceRow.tenant.in_(tenants)
    )
    with Session(book) as session:
        return {(tenant, period) for tenant, period in session.execute(statement)}
