"""Credit notes: sums given back on a finalized invoice. Drafted when something is found, numbered when a period is finalized."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

from sqlalchemy import Engine, delete, select
from sqlalchemy.orm import Session

from taximeter_billing.book import AuditRow, CreditNoteRow, InvoiceRow, writing
from taximeter_billing.domain.adjusting import Adjustment
from taximeter_billing.domain.invoice import canonical_json
from taximeter_billing.domain.rounding import round_half_up
from taximeter_billing.errors import FrozenError, NotFoundError
from taximeter_billing.numbering import next_number
from taximeter_schemas.money import format_pico, from_pico, pico_per_minor_unit, to_pico

LATE = "late usage"


@dataclass(frozen=True, slots=True)
class Refund:
    """What to give back on one invoice. The amounts of the lines are below 0."""

    invoice: InvoiceRow
    reason: str
    lines: Sequence[Adjustment]


def draft(session: Session, refund: Refund, period: str, now: datetime) -> CreditNoteRow:
    """Draft a note, in place of the last draft for the same invoice and reason."""
    row = session.scalar(
        select(CreditNoteRow).where(
            CreditNoteRow.invoice == refund.invoice.number,
            CreditNoteRow.reason == refund.reason,
            CreditNoteRow.status == "draft",
        )
    )
    net = sum(line.amount_pico for line in refund.lines)
    total = round_half_up(net, refund.invoice.currency)
    text = canonical_json(_document(refund, period, net, total))
    if row is None:
        row = CreditNoteRow(tenant=refund.invoice.tenant, invoice=refund.invoice.number or "", status="draft")
        session.add(row)
    elif row.document == text:
        return row
    row.period, row.reason, row.currency, row.drafted_at = period, refund.reason, refund.invoice.currency, now
    row.net_pico, row.total_minor = net, total
    row.document, row.document_sha256 = text, sha256(text.encode()).hexdigest()
    return row


def _document(refund: Refund, period: str, net_pico: int, total_minor: int) -> dict[str, object]:
    return {
        "invoice": refund.invoice.number,
        "tenant": refund.invoice.tenant,
        "period": period,
        "reason": refund.reason,
        "currency": refund.invoice.currency,
        "lines": [
            {
                "kind": line.kind,
                "id": line.id,
                "label": line.label,
                "net_pico": str(line.amount_pico),
                "receipt": {"detail": dict(sorted(line.detail.items()))},
            }
            for line in refund.lines
        ],
        "net_pico": str(net_pico),
        "total_minor": str(total_minor),
    }


def drop_late_drafts(session: Session, tenant: str, keep: set[str]) -> None:
    """Forget drafts for late usage that is no longer owed back; `keep` names the invoices that still have one."""
    session.execute(
        delete(CreditNoteRow).where(
            CreditNoteRow.tenant == tenant,
            CreditNoteRow.status == "draft",
            CreditNoteRow.reason == LATE,
            CreditNoteRow.invoice.not_in(keep),
        )
    )


def issue_drafts(session: Session, period: str, series: str, now: datetime, tenants: set[str]) -> list[CreditNoteRow]:
    """Number the drafts of those tenants that were found while closing the period."""
    issued = []
    statement = select(CreditNoteRow).where(CreditNoteRow.period == period, CreditNoteRow.status == "draft")
    for row in session.scalars(statement.order_by(CreditNoteRow.tenant, CreditNoteRow.id)):
        if row.tenant in tenants:
            row.number, row.status, row.issued_at = next_number(session, series), "final", now
            issued.append(row)
    return issued


def give_back(
    book: Engine, number: str, amount: str | None, reason: str, series: str, actor: str, now: datetime
) -> CreditNoteRow:
    """Issue a note over an amount (major units; None: all that is not given back yet) at once.

    Raises NotFoundError, FrozenError when the invoice is not final, AmountError, or when more would be given back than was
    invoiced.
    """
    with writing(book) as session:
        invoice = session.scalar(select(InvoiceRow).where(InvoiceRow.number == number).with_for_update())
        if invoice is None:
            raise NotFoundError(f"no invoice is called {number!r}")
        if invoice.status != "final":
            raise FrozenError(f"{number} is {invoice.status}; a credit note needs a final invoice")
        earlier = session.scalars(
            select(CreditNoteRow.total_minor).where(CreditNoteRow.invoice == number, CreditNoteRow.status == "final")
        )
        unit = pico_per_minor_unit(invoice.currency)
        open_pico = (invoice.total_minor + sum(earlier)) * unit
        pico = open_pico if amount is None else to_pico(amount)
        if not 0 < pico <= open_pico or pico % unit:
            left = format_pico(open_pico, invoice.currency)
            raise FrozenError(
                f"{from_pico(pico):f} cannot be given back on {number}: {left} is left, in whole minor units"
            )
        line = Adjustment("refund", number, reason, -pico)
        row = draft(session, Refund(invoice, reason, [line]), invoice.period, now)
        row.number, row.status, row.issued_at = next_number(session, series), "final", now
        after = {"number": row.number, "invoice": number, "amount_pico": str(-pico), "reason": reason}
        session.add(
            AuditRow(at=now, actor=actor, action="credit", kind="invoice", key=number, before=None, after=after)
        )
    return row


def list_notes(book: Engine, period: str | None = None) -> list[CreditNoteRow]:
    """Credit notes, drafts included, by period and tenant."""
    statement = select(CreditNoteRow).order_by(CreditNoteRow.period, CreditNoteRow.tenant, CreditNoteRow.id)
    with Session(book, expire_on_commit=False) as session:
        return list(session.scalars(statement if period is None else statement.where(CreditNoteRow.period == period)))
