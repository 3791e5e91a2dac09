"""Credit notes: sums given back on a finalized invoice. Drafted when something is found, numbered when a period is finalized."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256

from sqlalchemy import Engine, delete, select
from sqlalchemy.orm import Session

from taximeter_billing import ledger
from taximeter_billing.book import AuditRow, CreditNoteRow, InvoiceRow, writing
from taximeter_billing.declarations.state import read_state
from taximeter_billing.domain.adjusting import Adjustment
from taximeter_billing.domain.invoice import canonical_json
from taximeter_billing.domain.rounding import round_half_up
from taximeter_billing.errors import FrozenError, NotFoundError
from taximeter_billing.numbering import next_number
from taximeter_schemas.money import format_pico, from_pico, pico_per_minor_unit, to_pico

LATE = "late usage"
_EVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Refund:
    """What to give back on one invoice. The amounts of the lines are below 0."""

    invoice: InvoiceRow
    reason: str
    lines: Sequence[Adjustment]


@dataclass(frozen=True, slots=True)
class Given:
    """How a note gives back: in money, in whole minor units too, and to the grants that had paid. What was given back before, for
    another reason, is not given back again."""

    money_pico: int
    total_minor: int
    grants_pico: Mapping[str, int] = field(default_factory=dict)


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
    given = _given(session, refund, -net)
    text = canonical_json(_document(refund, period, net, given))
    if row is None:
        row = CreditNoteRow(tenant=refund.invoice.tenant, invoice=refund.invoice.number or "", status="draft")
        session.add(row)
    elif row.document == text:
        return row
    row.period, row.reason, row.currency, row.drafted_at = period, refund.reason, refund.invoice.currency, now
    row.net_pico, row.total_minor = net, -given.total_minor
    row.document, row.document_sha256 = text, sha256(text.encode()).hexdigest()
    return row


def _given(session: Session, refund: Refund, owed_pico: int) -> Given:
    """First the money that was to be paid, then what grants paid, those first that pay last."""
    invoice, unit = refund.invoice, pico_per_minor_unit(refund.invoice.currency)
    if refund.reason != LATE:
        return Given(owed_pico, round_half_up(owed_pico, invoice.currency))
    earlier = list(
        session.scalars(
            select(CreditNoteRow).where(CreditNoteRow.invoice == invoice.number, CreditNoteRow.status == "final")
        )
    )
    before = sum(int(json.loads(note.document).get("money_pico", -note.net_pico)) for note in earlier)
    # True-ups of the month that later invoices charged are given back here, too.
    elsewhere = sum(_charged_elsewhere(invoice, line) for line in refund.lines)
    money = min(owed_pico, max(0, invoice.net_pico - before) + elsewhere)
    minor_left = max(0, invoice.total_minor + sum(note.total_minor for note in earlier)) + -(-elsewhere // unit)
    total = min(round_half_up(money, invoice.currency), minor_left)
    rest, grants = owed_pico - money, {}
    paid = ledger.paid_by(session, invoice.number or "", [note.number or "" for note in earlier]) if rest else {}
    if paid:
        granted = ledger.instances(read_state(session).grants.get(invoice.tenant, []), _EVER)
        turns = {grant.id: grant.turn for _declared, grant in granted}
        for name in sorted(paid, key=lambda name: turns[name], reverse=True):
            if part := min(rest, paid[name]):
                grants[name] = part
            rest -= part
    return Given(money, total, grants)


def _charged_elsewhere(invoice: InvoiceRow, line: Adjustment) -> int:
    own = int(json.loads(invoice.document)["owed_pico"])
    return max(0, int(line.detail["owed_before_pico"]) - own)


def _document(refund: Refund, period: str, net_pico: int, given: Given) -> dict[str, object]:
    apart = {
        "money_pico": str(given.money_pico),
        "grants_pico": {name: str(pico) for name, pico in sorted(given.grants_pico.items())},
    }
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
        "total_minor": str(-given.total_minor),
        **(apart if given.money_pico != -net_pico else {}),
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
            if row.reason == LATE:
                _draft_again(session, row, now)
            row.number, row.status, row.issued_at = next_number(session, series), "final", now
            given = json.loads(row.document).get("grants_pico", {})
            grants = {name: int(pico) for name, pico in given.items()}
            ledger.give_back(session, row.number, row.invoice, row.tenant, row.currency, grants, now)
            issued.append(row)
    return issued


def _draft_again(session: Session, row: CreditNoteRow, now: datetime) -> None:
    """What can be given back may have been given back since."""
    invoice = session.scalars(select(InvoiceRow).where(InvoiceRow.number == row.invoice)).one()
    lines = [
        Adjustment(line["kind"], line["id"], line["label"], int(line["net_pico"]), line["receipt"]["detail"])
        for line in json.loads(row.document)["lines"]
    ]
    draft(session, Refund(invoice, row.reason, lines), row.period, now)


def void_notes(session: Session, number: str) -> list[str]:
    """The notes of a voided invoice are void with it: what they gave back was part of what is not to be paid any more. Returns
    the numbers of those that were issued."""
    voided = []
    for row in list(session.scalars(select(CreditNoteRow).where(CreditNoteRow.invoice == number))):
        if row.status == "final":
            row.status = "void"
            voided.append(row.number or "")
        elif row.status == "draft":
            session.delete(row)
    return voided


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
