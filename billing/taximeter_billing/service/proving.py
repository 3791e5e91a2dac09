"""What becomes of invoices, and what proves them, over HTTP: review, void, credit notes, verify, explain, margins."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel
from sqlalchemy import Engine

from taximeter_billing.book import CreditNoteRow
from taximeter_billing.credit_notes import give_back, list_notes
from taximeter_billing.domain.margin import By, summed
from taximeter_billing.explaining import explain_line
from taximeter_billing.lifecycle import CREDIT_NOTES, review, void_invoice
from taximeter_billing.margins import margins_of_month
from taximeter_billing.service.invoicing import Month, as_json
from taximeter_billing.settings import BillingSettings
from taximeter_billing.verifying import verify_invoice
from taximeter_billing.warehouse import UsageReader
from taximeter_sql import connect

EVENTS_MAX = 1000


class DraftToReview(BaseModel):
    """A draft, as TENANT/PERIOD."""

    invoice: str


class InvoiceToVoid(BaseModel):
    """A final invoice, by its number, and why."""

    number: str
    reason: str


class SumToGiveBack(InvoiceToVoid):
    """A sum in major units ("12.50"); without it, all that is left."""

    amount: str | None = None


def router(settings: BillingSettings, book: Engine, caller: Callable[..., str]) -> APIRouter:
    """The routes under /v1."""
    api = APIRouter(tags=["invoices"])

    @api.post("/invoices/review")
    def review_draft(what: DraftToReview, actor: Annotated[str, Depends(caller)]) -> dict[str, Any]:
        """Note that a draft was looked at. A close that changes it takes the note away."""
        return as_json(review(book, what.invoice, actor, datetime.now(UTC)))

    @api.post("/invoices/void")
    def void(what: InvoiceToVoid, actor: Annotated[str, Depends(caller)]) -> dict[str, Any]:
        """Void a final invoice: it keeps its number, and closing drafts another in its place."""
        return as_json(void_invoice(book, what.number, what.reason, actor, datetime.now(UTC)))

    @api.post("/invoices/credit", status_code=201)
    def credit(what: SumToGiveBack, actor: Annotated[str, Depends(caller)]) -> dict[str, Any]:
        """Give a sum back by a credit note with a number of its own."""
        note = give_back(book, what.number, what.amount, what.reason, CREDIT_NOTES, actor, datetime.now(UTC))
        return _note(note)

    @api.get("/credit-notes")
    def notes(period: str | None = None) -> list[dict[str, Any]]:
        """Credit notes, drafts included."""
        return [_note(row) for row in list_notes(book, period)]

    @api.get("/verify")
    def verify(invoice: str) -> dict[str, Any]:
        """Derive an invoice again from the raw events, and say what differs."""
        with _reader(settings) as reader:
            found = verify_invoice(book, reader, invoice)
        hashes = {"document_sha256": found.invoice.document_sha256, "derived_sha256": found.derived_sha256}
        return {"proven": found.proven, "events": found.events, "differences": found.differences, **hashes}

    @api.get("/explain")
    def explain(invoice: str, line: int, events: Annotated[int, Query(ge=0, le=EVENTS_MAX)] = 100) -> dict[str, Any]:
        """One line with its receipt, and the events that it was made from."""
        with _reader(settings) as reader:
            found = explain_line(book, reader, invoice, line, events)
        return {
            "line": found.line,
            "inputs": found.inputs,
            "events_all": found.events_all,
            "agrees": found.agrees,
            "events": [_strings(asdict(event)) for event in found.events],
        }

    @api.get("/margins")
    def margins(period: Month, by: By = "tenant") -> dict[str, Any]:
        """What a month earned beside what it cost, by the declared cost cards."""
        with _reader(settings) as reader:
            found = margins_of_month(book, reader, period)
        rows = [
            {"name": name, "negative": one.negative, **_strings({**asdict(one), "margin_pico": one.margin_pico})}
            for (name, _), one in summed(found.margins, by).items()
        ]
        return {"period": period, "margins": rows, "blocked": found.blocked}

    return api


def _note(row: CreditNoteRow) -> dict[str, Any]:
    names = ("number", "invoice", "tenant", "period", "status", "reason", "currency", "issued_at", "document_sha256")
    amounts = {"net_pico": str(row.net_pico), "total_minor": str(row.total_minor)}
    return {**{name: getattr(row, name) for name in names}, **amounts}


def _strings(values: dict[str, Any]) -> dict[str, Any]:
    """Pico-units as strings: they outgrow what JavaScript calls a number."""
    return {name: str(value) if name.endswith("_pico") else value for name, value in values.items()}


@contextmanager
def _reader(settings: BillingSettings) -> Iterator[UsageReader]:
    client = connect(settings.clickhouse_url)
    try:
        yield UsageReader(client)
    finally:
        client.close()
