"""Closes a period: reads usage, settles cache savings, writes drafts; finalizes them with gapless numbers.

A draft is built anew each time and is byte for byte the same while its inputs are. A finalized invoice never changes. A tenant
for whom something does not agree is parked with the reason; the others go on.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from taximeter_billing import parking
from taximeter_billing.book import InvoiceRow, ParkedRow, SeriesRow
from taximeter_billing.declarations.applying import current
from taximeter_billing.domain.invoice import Inputs, Invoice, build_invoice
from taximeter_billing.domain.settlement import Settlement, SettlementError, settle_period
from taximeter_billing.domain.usage import UnknownPriceError, UsageRow
from taximeter_billing.errors import NotFoundError, PeriodOpenError
from taximeter_billing.warehouse import UsageReader
from taximeter_schemas.cache_policies import DEFAULT_CACHE_POLICY, CachePolicy, load_cache_policy
from taximeter_schemas.control import ControlKind
from taximeter_schemas.errors import CachePolicyError, CacheUseError
from taximeter_schemas.periods import Period, billing_month
from taximeter_schemas.rate_cards import RateCard
from taximeter_schemas.tenants import Tenant

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Closed:
    """What closing a period did: tenants by what became of their invoice. `late`: of the final ones, those whose usage has
    changed since, and how; the invoice stays as it is, and a correction is due."""

    drafted: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    final: list[str] = field(default_factory=list)
    without_usage: list[str] = field(default_factory=list)
    parked: dict[str, str] = field(default_factory=dict)
    late: dict[str, str] = field(default_factory=dict)

    def note(self, done: Literal["drafted", "unchanged", "final"], tenant: str) -> None:
        """Count a tenant under what was done for it."""
        {"drafted": self.drafted, "unchanged": self.unchanged, "final": self.final}[done].append(tenant)


@dataclass(frozen=True, slots=True)
class _Group:
    """Tenants that are settled together: one cache pool, one policy for what it saved, one currency. What stands in the way of
    one of them may hold the others of its pool, and nobody else."""

    policy: CachePolicy
    currency: str
    tenants: tuple[Tenant, ...]


@dataclass(frozen=True, slots=True)
class _Declared:
    tenants: dict[str, Tenant]
    cards: list[RateCard]
    policies: dict[str, CachePolicy]

    def currency(self, tenant: Tenant) -> str:
        """Usage is priced, and so invoiced, in the currency of the tenant's rate card."""
        return next((card.currency for card in self.cards if card.id == tenant.rate_card), tenant.currency)


def close_period(
    book: Engine,
    reader: UsageReader,
    label: str,
    now: datetime,
    *,
    grace_hours: int = 72,
    early: bool = False,
    only: str | None = None,
    progress: Progress = lambda _tenant, _done, _all: None,
) -> Closed:
    """Draft the invoices of a month ("2026-11"). Raises PeriodOpenError while it runs or its grace does (unless `early`),
    PeriodError for what is no month.

    All tenants of a group are settled together even when `only` one is drafted: savings are shared between them.
    """
    billing_month(label, "UTC")  # also without a tenant, a label that is no month is a mistake
    with Session(book) as session:
        declared = _declared(session)
    if only is not None and only not in declared.tenants:
        raise NotFoundError(f"no tenant is called {only!r}")
    periods = {tenant.id: billing_month(label, tenant.time_zone) for tenant in declared.tenants.values()}
    _check_over(periods, label, now, grace_hours, early)
    closed = Closed()
    done = 0
    for group in _groups(declared):
        wanted = [tenant for tenant in group.tenants if only in (None, tenant.id)]
        if wanted:
            _close_group(book, reader, group, wanted, declared.cards, periods, now, closed)
        done += len(group.tenants)
        progress(", ".join(tenant.id for tenant in wanted[:3]), done, len(declared.tenants))
    return closed


def finalize_period(book: Engine, label: str, series: str, now: datetime, only: str | None = None) -> list[InvoiceRow]:
    """Finalize every draft of a month that is not parked; each gets the next number of the series in one transaction."""
    finalized = []
    with Session(book, expire_on_commit=False) as session, session.begin():
        counter = session.get(SeriesRow, series, with_for_update=True)
        if counter is None:
            counter = SeriesRow(name=series, last=0)
            session.add(counter)
        parked = {row.tenant for row in session.scalars(select(ParkedRow).where(parking.concerns(label)))}
        drafts = (
            select(InvoiceRow)
            .where(InvoiceRow.period == label, InvoiceRow.status == "draft")
            .order_by(InvoiceRow.tenant)
        )
        for row in session.scalars(drafts):
            if row.tenant in parked or only not in (None, row.tenant):
                continue
            counter.last += 1
            row.number, row.status, row.finalized_at = f"{series}-{counter.last:06d}", "final", now
            finalized.append(row)
    return finalized


def list_invoices(book: Engine, period: str | None = None) -> list[InvoiceRow]:
    """Invoices, drafts included, by period and tenant."""
    statement = select(InvoiceRow).order_by(InvoiceRow.period, InvoiceRow.tenant)
    with Session(book, expire_on_commit=False) as session:
        return list(session.scalars(statement if period is None else statement.where(InvoiceRow.period == period)))


def find_invoice(book: Engine, reference: str) -> InvoiceRow:
    """An invoice by its number, or by "tenant/period". Raises NotFoundError."""
    tenant, _, period = reference.partition("/")
    with Session(book, expire_on_commit=False) as session:
        found = session.scalar(select(InvoiceRow).where(InvoiceRow.number == reference)) or session.scalar(
            select(InvoiceRow).where(InvoiceRow.tenant == tenant, InvoiceRow.period == period)
        )
    if found is None:
        raise NotFoundError(f"no invoice is called {reference!r}; name its number, or TENANT/PERIOD")
    return found


def list_parked(book: Engine, period: str | None = None) -> list[ParkedRow]:
    """Tenants whose period is parked, and why."""
    statement = select(ParkedRow).order_by(ParkedRow.period, ParkedRow.tenant)
    with Session(book, expire_on_commit=False) as session:
        return list(session.scalars(statement if period is None else statement.where(parking.concerns(period))))


def _declared(session: Session) -> _Declared:
    things = current(session)
    cards = [RateCard.model_validate(body) for (kind, _), body in things.items() if kind is ControlKind.RATE_CARD]
    policies: dict[str, CachePolicy] = {"default": DEFAULT_CACHE_POLICY}
    for (kind, key), body in things.items():
        if kind is ControlKind.CACHE_POLICY:
            policies[key] = load_cache_policy(body, {})
    tenants = {
        key: Tenant.model_validate(body) for (kind, key), body in sorted(things.items()) if kind is ControlKind.TENANT
    }
    return _Declared(tenants, cards, policies)


def _check_over(periods: dict[str, Period], label: str, now: datetime, grace_hours: int, early: bool) -> None:
    if early or not periods:
        return
    over = max(period.end for period in periods.values()) + timedelta(hours=grace_hours)
    if now < over:
        raise PeriodOpenError(
            f"{label} may be closed from {over:%Y-%m-%d %H:%M} UTC ({grace_hours} h of grace); --early closes it now"
        )


def _groups(declared: _Declared) -> Iterator[_Group]:
    members: dict[tuple[str, str, str], list[Tenant]] = defaultdict(list)
    for tenant in declared.tenants.values():
        members[tenant.cache_policy, declared.currency(tenant), tenant.pool].append(tenant)
    for (policy, currency, _pool), tenants in sorted(members.items()):
        yield _Group(declared.policies.get(policy, DEFAULT_CACHE_POLICY), currency, tuple(tenants))


def _close_group(
    book: Engine,
    reader: UsageReader,
    group: _Group,
    wanted: list[Tenant],
    cards: list[RateCard],
    periods: dict[str, Period],
    now: datetime,
    closed: Closed,
) -> None:
    label = periods[wanted[0].id].label
    spans = [periods[tenant.id] for tenant in group.tenants]
    pool_set = reader.event_set([t.id for t in group.tenants], [p.start for p in spans], [p.end for p in spans])
    try:
        settlement = settle_period(_rows(reader, group, periods), cards, group.policy, f"{group.policy.name}/{label}")
    except (SettlementError, CachePolicyError, CacheUseError, UnknownPriceError) as error:
        for tenant in wanted:
            closed.parked[tenant.id] = _park(book, tenant.id, label, str(error), now)
        return
    for tenant in wanted:
        period = periods[tenant.id]
        if (held := parking.held(book, tenant.id)) is not None:
            closed.parked[tenant.id] = held
            continue
        if (reason := _obstacle(reader, tenant, period)) is not None:
            closed.parked[tenant.id] = _park(book, tenant.id, label, reason, now)
            continue
        if tenant.id not in settlement.lines:
            closed.without_usage.append(tenant.id)
            continue
        own = reader.event_set([tenant.id], [period.start], [period.end])
        names = tuple(sorted(card.name for card in cards if card.id == tenant.rate_card))
        inputs = Inputs(own.events, own.hash, names, group.policy.name, pool_set.events, pool_set.hash)
        invoice = _invoice(tenant, period, group.currency, settlement, inputs)
        what, kept = _keep(book, invoice, now)
        {"drafted": closed.drafted, "unchanged": closed.unchanged, "final": closed.final}[what].append(tenant.id)
        if what == "final" and kept.document_sha256 != invoice.sha256:
            closed.late[tenant.id] = (
                f"invoice {kept.number} no longer agrees with the usage: exact net {kept.net_pico} then,"
                f" {invoice.net_pico} now (pico-units); a correction is due"
            )


def _rows(reader: UsageReader, group: _Group, periods: dict[str, Period]) -> Iterator[UsageRow]:
    for tenant in group.tenants:
        yield from reader.rows(tenant.id, periods[tenant.id].start, periods[tenant.id].end)


def _obstacle(reader: UsageReader, tenant: Tenant, period: Period) -> str | None:
    found = reader.obstacles(tenant.id, period.start, period.end)
    if found.rollup_off:
        return f"the hourly rollup differs from the raw rows in {found.rollup_off} hours; run `taximeter reconcile`"
    if found.unrated:
        return f"{found.unrated} events have no price yet; publish one and rate them"
    return None


def _invoice(tenant: Tenant, period: Period, currency: str, settlement: Settlement, inputs: Inputs) -> Invoice:
    return build_invoice(tenant, period, currency, settlement.lines[tenant.id], inputs, settlement.known)


def _park(book: Engine, tenant: str, label: str, reason: str, now: datetime) -> str:
    with Session(book) as session, session.begin():
        row = session.get(ParkedRow, (tenant, label))
        if row is None:
            session.add(ParkedRow(tenant=tenant, period=label, reason=reason, parked_at=now))
        else:
            row.reason = reason
    return reason


def _keep(book: Engine, invoice: Invoice, now: datetime) -> tuple[Literal["drafted", "unchanged", "final"], InvoiceRow]:
    """Write a draft over the last one; leave a finalized invoice alone. Says what was done, and what the book holds."""
    with Session(book, expire_on_commit=False) as session, session.begin():
        parked = session.get(ParkedRow, (invoice.tenant, invoice.period))
        if parked is not None:
            session.delete(parked)
        row = session.scalar(
            select(InvoiceRow).where(InvoiceRow.tenant == invoice.tenant, InvoiceRow.period == invoice.period)
        )
        if row is not None and row.status != "draft":
            return "final", row
        if row is not None and row.document_sha256 == invoice.sha256:
            return "unchanged", row
        if row is None:
            row = InvoiceRow(tenant=invoice.tenant, period=invoice.period, status="draft")
            session.add(row)
        row.currency, row.document, row.document_sha256 = invoice.currency, invoice.document, invoice.sha256
        row.list_pico, row.savings_pico, row.net_pico = invoice.list_pico, invoice.savings_pico, invoice.net_pico
        row.total_minor, row.drafted_at = invoice.total_minor, now
    return "drafted", row
