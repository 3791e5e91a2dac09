"""Closes a period: reads usage, settles cache savings, applies what was agreed, writes drafts.

A draft is built anew while its inputs change and is byte for byte the same while they do not. Work goes on in batches, each kept
in one transaction, and what is drafted from the same inputs already is not computed again: a close that was killed goes on where
it stopped. A tenant for whom something does not agree is parked with the reason; the others go on.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from taximeter_billing import ledger, parking
from taximeter_billing.book import InvoiceRow, ParkedRow, writing
from taximeter_billing.computing import Computed, Extra, compute_groups, inputs_sha256
from taximeter_billing.credit_notes import LATE, Refund, draft, drop_late_drafts
from taximeter_billing.declarations.state import Group, State, in_batches, read_state
from taximeter_billing.domain.invoice import Invoice
from taximeter_billing.errors import NotFoundError, PeriodOpenError
from taximeter_billing.lifecycle import finalize_period, find_invoice, last_revision, list_invoices, list_parked
from taximeter_billing.seeing import Seen, look
from taximeter_billing.settled_before import Clash, SettledBefore
from taximeter_billing.true_ups import Late, find_late
from taximeter_billing.uninvoiced import months_without_invoice
from taximeter_billing.warehouse import Obstacle, TenantSpan, UsageReader
from taximeter_schemas.periods import Period, billing_month
from taximeter_schemas.tenants import Tenant

__all__ = ["Closed", "close_period", "finalize_period", "find_invoice", "list_invoices", "list_parked"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Closed:
    """What closing a period did: tenants by what became of their invoice. `late`: of the final ones, those whose usage has
    changed since, and how; the invoice stays as it is, and the next one carries the difference. `refunds`: credit notes that
    were drafted, by tenant, in pico-units. `overtaken`: whose invoice somebody else drafted, finalized or voided meanwhile.
    `uninvoiced`: by earlier month, tenants that used something in it, or owe something for what they kept in cache, and have no
    invoice for it; closing that month makes one. `undeclared`: tenants with usage that were declared once and are not any
    more, so that nobody is invoiced for it."""

    drafted: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    final: list[str] = field(default_factory=list)
    without_usage: list[str] = field(default_factory=list)
    parked: dict[str, str] = field(default_factory=dict)
    late: dict[str, str] = field(default_factory=dict)
    refunds: dict[str, int] = field(default_factory=dict)
    overtaken: list[str] = field(default_factory=list)
    uninvoiced: dict[str, list[str]] = field(default_factory=dict)
    undeclared: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Batch:
    """Groups that are looked at together, and what was found."""

    groups: list[Group]
    wanted: list[Tenant]
    seen: Seen
    obstacles: Mapping[str, Obstacle]
    extra: Extra
    late: Late
    rows: dict[str, InvoiceRow]
    """The last revision of each tenant's invoice for the period."""
    held: dict[str, str]
    """Tenants that are parked whatever the month, and why."""
    clashes: dict[str, list[Clash]]
    """By tenant, invoices of others with which it shares something and that were settled otherwise than it would be now."""
    computed: Computed = field(default_factory=Computed)
    hashes: dict[str, str] = field(default_factory=dict)


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
        state = read_state(session)
    if only is not None and only not in state.tenants:
        raise NotFoundError(f"no tenant is called {only!r}")
    periods = {tenant.id: billing_month(label, tenant.time_zone) for tenant in state.tenants.values()}
    _check_over(periods, label, now, grace_hours, early)
    closed = Closed()
    if only is None:
        month = billing_month(label, "UTC")
        used = reader.tenants_with_usage(month.start, month.end)
        closed.undeclared.extend(name for name in used if name not in state.tenants)
    before = SettledBefore(book, label, state)
    done = 0
    for groups in in_batches(state.groups()):
        wanted = [tenant for group in groups for tenant in group.tenants if only in (None, tenant.id)]
        if wanted:
            for earlier, names in months_without_invoice(book, reader, label, wanted, state).items():
                closed.uninvoiced.setdefault(earlier, []).extend(names)
            batch = _look(book, reader, state, groups, wanted, label, now, before)
            _compute(reader, state, batch)
            with writing(book) as session:
                for tenant in wanted:
                    _keep(session, tenant, batch, closed, state.through, now)
        done += sum(len(group.tenants) for group in groups)
        progress(", ".join(tenant.id for tenant in wanted[:3]), done, len(state.tenants))
    return closed


def _check_over(periods: Mapping[str, Period], label: str, now: datetime, grace_hours: int, early: bool) -> None:
    if early or not periods:
        return
    over = max(period.end for period in periods.values()) + timedelta(hours=grace_hours)
    if now < over:
        raise PeriodOpenError(
            f"{label} may be closed from {over:%Y-%m-%d %H:%M} UTC ({grace_hours} h of grace); --early closes it now"
        )


def _look(
    book: Engine,
    reader: UsageReader,
    state: State,
    groups: list[Group],
    wanted: list[Tenant],
    label: str,
    now: datetime,
    before: SettledBefore,
) -> _Batch:
    """Everything that the batch's invoices depend on. Grants that have begun are booked on the way."""
    names = [tenant.id for tenant in wanted]
    late = find_late(book, reader, label, set(names))
    seen = look(reader, [tenant for group in groups for tenant in group.tenants], label, cards=state.cards)
    spans = [TenantSpan(name, seen.periods[name].start, seen.periods[name].end) for name in names]
    granted = {name: state.grants[name] for name in names if name in state.grants}
    end = max(seen.periods[name].end for name in names)
    with writing(book) as session:
        if granted:
            ledger.post_grants(session, granted, end, now)
        grants = ledger.open_grants(session, granted, end) if granted else {}
        statement = select(InvoiceRow).where(InvoiceRow.period == label, InvoiceRow.tenant.in_(names))
        rows = {row.tenant: row for row in session.scalars(statement.order_by(InvoiceRow.revision))}
        held = {
            row.tenant: row.reason
            for row in session.scalars(select(ParkedRow).where(ParkedRow.period == parking.EVERY_PERIOD))
        }
    still_open = {name for name in names if name not in rows or rows[name].status != "final"}
    clashes: dict[str, list[Clash]] = {}
    for clash in before.clashes(reader, groups, seen, still_open):
        clashes.setdefault(clash.tenant, []).append(clash)
    extra = Extra(grants, dict(late.charges))
    return _Batch(groups, wanted, seen, reader.obstacles(spans), extra, late, rows, held, clashes)


def _compute(reader: UsageReader, state: State, batch: _Batch) -> None:
    """Compute what is not drafted from these very inputs already."""
    wanted = {tenant.id for tenant in batch.wanted}
    groups = []
    for group in batch.groups:
        if needed := {
            tenant.id for tenant in group.tenants if tenant.id in wanted and _is_new(state, group, tenant, batch)
        }:
            groups.append((group, needed))
    if groups:
        found = compute_groups(reader, state, groups, batch.seen, batch.extra)
        batch.computed.invoices.update(found.invoices)
        batch.computed.blocked.update(found.blocked)


def _is_new(state: State, group: Group, tenant: Tenant, batch: _Batch) -> bool:
    """Whether the tenant's invoice must be computed. Its inputs are remembered by their hash."""
    if _obstacle(tenant.id, batch) is not None:
        return False
    row = batch.rows.get(tenant.id)
    if row is not None and row.status == "final":
        return False
    digest = batch.hashes[tenant.id] = inputs_sha256(state, group, tenant, batch.seen, batch.extra)
    return row is None or row.status != "draft" or row.inputs_sha256 != digest


def _obstacle(tenant: str, batch: _Batch) -> str | None:
    if (reason := batch.held.get(tenant)) is not None:
        return reason
    if (reason := batch.late.blocked.get(tenant)) is not None:
        return reason
    found = batch.obstacles.get(tenant)
    if found is not None and found.rollup_off:
        return f"the hourly rollup differs from the raw rows in {found.rollup_off} hours; run `taximeter reconcile`"
    if found is not None and found.unrated:
        return f"{found.unrated} events have no price yet; publish one and rate them"
    final = (clash.reason for clash in batch.clashes.get(tenant, ()) if clash.invoice.number is not None)
    return next(final, None) or batch.computed.blocked.get(tenant)


def _keep(session: Session, tenant: Tenant, batch: _Batch, closed: Closed, through: int, now: datetime) -> None:
    """Write what was found about a tenant, and count it."""
    label = batch.seen.label
    row = last_revision(session, tenant.id, label)
    drafts = _drafts_of_others(session, batch.clashes.get(tenant.id, ()))
    if _state(row) != _state(batch.rows.get(tenant.id)) or any(other.status == "final" for other, _clash in drafts):
        closed.overtaken.append(tenant.id)  # what was computed is from before that
        return
    if (reason := _obstacle(tenant.id, batch)) is not None:
        closed.parked[tenant.id] = reason
        if tenant.id not in batch.held:
            _park(session, tenant.id, label, reason, now)
        return
    if (parked := session.get(ParkedRow, (tenant.id, label))) is not None:
        session.delete(parked)
        closed.parked.pop(tenant.id, None)
    _keep_refunds(session, tenant, batch, closed, now)
    for other, clash in drafts:
        if other.status == "draft" and session.get(ParkedRow, (other.tenant, label)) is None:
            closed.parked[other.tenant] = clash.reason_of_draft
            _park(session, other.tenant, label, clash.reason_of_draft, now)
    invoice = batch.computed.invoices.get(tenant.id)
    if row is not None and row.status == "final":
        closed.final.append(tenant.id)
        _note_late(row, batch, closed)
    elif invoice is not None:
        same = row is not None and row.status == "draft" and row.document_sha256 == invoice.sha256
        (closed.unchanged if same else closed.drafted).append(tenant.id)
        written = _write(session, row, invoice, now)
        written.inputs_sha256, written.declared_through = batch.hashes[tenant.id], through
    elif row is not None and row.status == "draft" and row.inputs_sha256 == batch.hashes[tenant.id]:
        closed.unchanged.append(tenant.id)
        row.declared_through = through
    else:
        if row is not None and row.status == "draft":
            session.delete(row)  # what it was made from is gone
        closed.without_usage.append(tenant.id)


def _drafts_of_others(session: Session, clashes: Iterable[Clash]) -> list[tuple[InvoiceRow, Clash]]:
    """What was a draft of another tenant when it was looked at and has not been drafted anew since."""
    found = [(session.get(InvoiceRow, one.invoice.id), one) for one in clashes if one.invoice.number is None]
    made = [(row, one) for row, one in found if row is not None]
    return [(row, one) for row, one in made if row.declared_through == one.invoice.declared_through]


def _state(row: InvoiceRow | None) -> tuple[int, str, str] | None:
    """What a row says, as far as closing depends on it."""
    return None if row is None else (row.id, row.status, row.document_sha256)


def _write(session: Session, row: InvoiceRow | None, invoice: Invoice, now: datetime) -> InvoiceRow:
    """Write a draft over the last one; beside a voided one, a new revision."""
    if row is None or row.status == "void":
        revision = 1 if row is None else row.revision + 1
        row = InvoiceRow(tenant=invoice.tenant, period=invoice.period, status="draft", revision=revision)
        session.add(row)
    if row.document_sha256 == invoice.sha256:
        return row
    row.currency, row.document, row.document_sha256 = invoice.currency, invoice.document, invoice.sha256
    row.list_pico, row.savings_pico, row.net_pico = invoice.list_pico, invoice.savings_pico, invoice.net_pico
    row.adjustments_pico, row.total_minor, row.drafted_at = invoice.adjustments_pico, invoice.total_minor, now
    row.reviewed_at = row.reviewed_by = None
    return row


def _keep_refunds(session: Session, tenant: Tenant, batch: _Batch, closed: Closed, now: datetime) -> None:
    lines = batch.late.refunds.get(tenant.id, [])
    drop_late_drafts(session, tenant.id, {line.id for line in lines})
    for line in lines:
        invoice = session.scalars(select(InvoiceRow).where(InvoiceRow.number == line.id)).one()
        draft(session, Refund(invoice, LATE, [line]), batch.seen.label, now)
        closed.refunds[tenant.id] = closed.refunds.get(tenant.id, 0) + line.amount_pico


def _note_late(row: InvoiceRow, batch: _Batch, closed: Closed) -> None:
    """Say that a final invoice no longer holds all usage. The difference is computed when a later month is closed."""
    events = batch.seen.sets[row.tenant].hash
    if f'"event_set_hash":"{events}"' not in row.document:
        closed.late[row.tenant] = (
            f"the usage of {row.period} has changed since invoice {row.number}; the next invoice carries the difference"
        )


def _park(session: Session, tenant: str, label: str, reason: str, now: datetime) -> None:
    row = session.get(ParkedRow, (tenant, label))
    if row is None:
        session.add(ParkedRow(tenant=tenant, period=label, reason=reason, parked_at=now))
    else:
        row.reason = reason
