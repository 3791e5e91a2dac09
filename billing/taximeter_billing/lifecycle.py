"""What becomes of a draft: reviewed, finalized with a gapless number, voided. Nothing finalized changes.

Finalizing draws credits in the same transaction. A draft whose credits or late usage are no longer as it says is parked instead,
and closing the period again makes it right.
"""

import json
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from taximeter_billing import ledger, parking
from taximeter_billing.book import AuditRow, CreditNoteRow, InvoiceRow, ParkedRow, writing
from taximeter_billing.credit_notes import LATE, issue_drafts, void_notes
from taximeter_billing.declarations.state import State, read_state
from taximeter_billing.errors import FrozenError, NotFoundError
from taximeter_billing.numbering import next_number
from taximeter_billing.true_ups import TRUE_UP, billed_before
from taximeter_schemas.periods import billing_month

CREDIT_NOTES = "CN"
"""The series that numbers of credit notes belong to."""


def finalize_period(
    book: Engine, label: str, series: str, now: datetime, only: str | None = None, *, reviewed_only: bool = False
) -> list[InvoiceRow]:
    """Finalize every draft of a month that is not parked; each gets the next number of the series, all in one transaction."""
    finalized = []
    with writing(book) as session:
        parked = {row.tenant for row in session.scalars(select(ParkedRow).where(parking.concerns(label)))}
        drafts = list(
            session.scalars(
                select(InvoiceRow)
                .where(InvoiceRow.period == label, InvoiceRow.status == "draft")
                .order_by(InvoiceRow.tenant)
            )
        )
        wanted = [row for row in drafts if row.tenant not in parked and only in (None, row.tenant)]
        wanted = [row for row in wanted if row.reviewed_at is not None or not reviewed_only]
        state = read_state(session)
        stale = _stale(session, label, wanted, state)
        for row in wanted:
            if (reason := stale.get(row.tenant)) is not None:
                session.add(ParkedRow(tenant=row.tenant, period=label, reason=reason, parked_at=now))
                continue
            row.number, row.status, row.finalized_at = next_number(session, series), "final", now
            _pay(session, row, now)
            finalized.append(row)
        _drop_stale_notes(session, label)
        issue_drafts(session, label, CREDIT_NOTES, now, _free_tenants(parked, stale, only, session, label))
        for row in finalized:
            if row.tenant in state.grants:
                end = billing_month(label, state.tenants[row.tenant].time_zone).end
                ledger.lapse(session, {row.tenant: state.grants[row.tenant]}, end, now)
    return finalized


def review(book: Engine, reference: str, actor: str, now: datetime) -> InvoiceRow:
    """Note that somebody looked at a draft and found it right. Closing that changes the draft takes the note away."""
    with writing(book) as session:
        row = _find(session, reference)
        if row.status != "draft":
            raise FrozenError(f"{reference} is {row.status}; only a draft is reviewed")
        row.reviewed_at, row.reviewed_by = now, actor
        _note(session, "review", row, actor, now, {"document_sha256": row.document_sha256})
    return row


def void_invoice(book: Engine, number: str, reason: str, actor: str, now: datetime) -> InvoiceRow:
    """Void a finalized invoice: it keeps its number, its credits return, and closing drafts another in its place. Its credit
    notes are void with it.

    Raises NotFoundError, and FrozenError for a draft or what is void already.
    """
    with writing(book) as session:
        row = session.scalar(select(InvoiceRow).where(InvoiceRow.number == number).with_for_update())
        if row is None:
            raise NotFoundError(f"no invoice is called {number!r}")
        if row.status != "final":
            raise FrozenError(f"{number} is {row.status}; only a final invoice is voided")
        row.status, row.voided_at, row.void_reason = "void", now, reason
        notes = void_notes(session, number)
        ledger.undo_payment(session, number, row.tenant, row.currency, notes, now)
        _note(session, "void", row, actor, now, {"reason": reason})
    return row


def list_invoices(book: Engine, period: str | None = None) -> list[InvoiceRow]:
    """Invoices, drafts and voided ones included, by period, tenant and revision."""
    statement = select(InvoiceRow).order_by(InvoiceRow.period, InvoiceRow.tenant, InvoiceRow.revision)
    with Session(book, expire_on_commit=False) as session:
        return list(session.scalars(statement if period is None else statement.where(InvoiceRow.period == period)))


def find_invoice(book: Engine, reference: str) -> InvoiceRow:
    """An invoice by its number, or the last by "tenant/period". Raises NotFoundError."""
    with Session(book, expire_on_commit=False) as session:
        return _find(session, reference)


def last_revision(session: Session, tenant: str, period: str) -> InvoiceRow | None:
    """The tenant's invoice for the month; of several revisions, the last."""
    of_month = select(InvoiceRow).where(InvoiceRow.tenant == tenant, InvoiceRow.period == period)
    return session.scalar(of_month.order_by(InvoiceRow.revision.desc()).limit(1))


def _find(session: Session, reference: str) -> InvoiceRow:
    tenant, _, period = reference.partition("/")
    found = session.scalar(select(InvoiceRow).where(InvoiceRow.number == reference))
    found = found or last_revision(session, tenant, period)
    if found is None:
        raise NotFoundError(f"no invoice is called {reference!r}; name its number, or TENANT/PERIOD")
    return found


def list_parked(book: Engine, period: str | None = None) -> list[ParkedRow]:
    """Tenants whose period is parked, and why."""
    statement = select(ParkedRow).order_by(ParkedRow.period, ParkedRow.tenant)
    with Session(book, expire_on_commit=False) as session:
        return list(session.scalars(statement if period is None else statement.where(parking.concerns(period))))


def _stale(session: Session, label: str, rows: list[InvoiceRow], state: State) -> dict[str, str]:
    """Drafts that say something about credits or late usage which is no longer so, and what."""
    documents = {row.tenant: json.loads(row.document) for row in rows}
    carrying = {tenant for tenant, document in documents.items() if list(_true_ups(document))}
    owed = {one.invoice.number: one.owed_pico for one in billed_before(session, label, carrying)} if carrying else {}
    spendable = ledger.spendable(session)
    stale = {}
    for tenant, document in documents.items():
        now = state.tenants.get(tenant)
        if now is not None and (now.time_zone, state.currency(now)) != (
            document["period"]["time_zone"],
            document["currency"],
        ):
            stale[tenant] = "the tenant's time zone or currency has changed since the draft; close the period again"
        for grant, before in document["inputs"].get("grants", {}).items():
            if spendable.get(grant, 0) != int(before):
                stale[tenant] = f"credit {grant} has changed since the draft; close the period again"
        for line in _true_ups(document):
            detail = line["receipt"]["detail"]
            if owed.get(detail["invoice"]) != int(detail["owed_before_pico"]):
                stale[tenant] = f"late usage of {detail['period']} is invoiced already; close the period again"
    return stale


def _drop_stale_notes(session: Session, label: str) -> None:
    """Forget drafts of credit notes for late usage that was settled since: closing the period again makes what is still owed."""
    drafts = select(CreditNoteRow).where(
        CreditNoteRow.period == label, CreditNoteRow.status == "draft", CreditNoteRow.reason == LATE
    )
    notes = list(session.scalars(drafts))
    owed = {one.invoice.number: one.owed_pico for one in billed_before(session, label, {note.tenant for note in notes})}
    for note in notes:
        details = [line["receipt"]["detail"] for line in json.loads(note.document)["lines"]]
        if any(owed.get(detail["invoice"]) != int(detail["owed_before_pico"]) for detail in details):
            session.delete(note)
    session.flush()


def _true_ups(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [line for line in document["lines"] if line.get("kind") == TRUE_UP]


def _pay(session: Session, row: InvoiceRow, now: datetime) -> None:
    lines = [line for line in json.loads(row.document)["lines"] if line.get("kind") == "credit"]
    drawn = {line["id"]: -int(line["net_pico"]) for line in lines}
    ledger.pay(session, row.number or "", row.tenant, row.currency, drawn, now)


def _free_tenants(parked: set[str], stale: dict[str, str], only: str | None, session: Session, label: str) -> set[str]:
    """Tenants whose credit notes may go out: those that are not held, also without an invoice of their own in this month."""
    drafted = set(
        session.scalars(select(InvoiceRow.tenant).where(InvoiceRow.period == label, InvoiceRow.status == "draft"))
    )
    everybody = {only} if only is not None else set(read_state(session).tenants)
    return everybody - parked - set(stale) - drafted


def _note(session: Session, action: str, row: InvoiceRow, actor: str, now: datetime, after: dict[str, object]) -> None:
    key = row.number or f"{row.tenant}/{row.period}"
    session.add(AuditRow(at=now, actor=actor, action=action, kind="invoice", key=key, before=None, after=after))
