"""Usage and invoices over HTTP. Amounts in pico-units are strings: they outgrow what JavaScript calls a number."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

from clickhouse_connect.driver.client import Client
from fastapi import APIRouter, Query
from pydantic import BaseModel
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from taximeter_billing.book import InvoiceRow
from taximeter_billing.closing import close_period, finalize_period, find_invoice, list_invoices, list_parked
from taximeter_billing.declarations.applying import current
from taximeter_billing.errors import NotFoundError
from taximeter_billing.settings import BillingSettings
from taximeter_billing.warehouse import UsageReader
from taximeter_schemas.control import ControlKind
from taximeter_schemas.periods import billing_month
from taximeter_sql import connect, query

Month = Annotated[str, Query(pattern=r"^\d{4}-(0[1-9]|1[0-2])$", description="YYYY-MM")]


class PeriodToClose(BaseModel):
    """A month, of one tenant or of all. `early` closes it before it and its grace are over."""

    period: str
    tenant: str | None = None
    early: bool = False


class PeriodToFinalize(BaseModel):
    """A month, of one tenant or of all; `reviewed_only` leaves drafts alone that nobody has looked at."""

    period: str
    tenant: str | None = None
    reviewed_only: bool = False


def router(settings: BillingSettings, book: Engine) -> APIRouter:
    """The routes under /v1."""
    api = APIRouter(tags=["invoices"])

    @api.get("/usage")
    def usage(tenant: str, period: Month) -> dict[str, Any]:
        """A tenant's rated usage of a month so far, by feature and model."""
        with Session(book) as session:
            body = current(session).get((ControlKind.TENANT, tenant))
        if body is None:
            raise NotFoundError(f"no tenant is called {tenant!r}")
        month = billing_month(period, body["time_zone"])
        with _warehouse(settings) as client:
            found = client.query(
                query("billing_usage_summary"), parameters={"tenant": tenant, "start": month.start, "end": month.end}
            )
        rows = [
            {name: str(value) if name.endswith("_pico") else value for name, value in row.items()}
            for row in found.named_results()
        ]
        return {"tenant": tenant, "period": period, "start": month.start, "end": month.end, "usage": rows}

    @api.get("/invoices")
    def invoices(period: str | None = None, tenant: str | None = None) -> dict[str, Any]:
        """Invoices, drafts included, and tenants that are parked, with the reason."""
        parked = [
            {"tenant": row.tenant, "period": row.period, "reason": row.reason, "parked_at": row.parked_at}
            for row in list_parked(book, period)
            if tenant in (None, row.tenant)
        ]
        rows = [as_json(row) for row in list_invoices(book, period) if tenant in (None, row.tenant)]
        return {"invoices": rows, "parked": parked}

    @api.post("/invoices/close")
    def close(what: PeriodToClose) -> dict[str, Any]:
        """Draft the month's invoices. Doing it again rebuilds drafts and leaves finalized invoices alone."""
        with _warehouse(settings) as client:
            closed = close_period(
                book,
                UsageReader(client),
                what.period,
                datetime.now(UTC),
                grace_hours=settings.grace_hours,
                early=what.early,
                only=what.tenant,
            )
        page = asdict(closed)
        refunds = page.pop("refunds")
        return {**page, "refunds_pico": {tenant: str(pico) for tenant, pico in refunds.items()}}

    @api.post("/invoices/finalize")
    def finalize(what: PeriodToFinalize) -> dict[str, Any]:
        """Finalize the month's drafts, each with the next number. Doing it again does nothing."""
        rows = finalize_period(
            book,
            what.period,
            settings.invoice_series,
            datetime.now(UTC),
            what.tenant,
            reviewed_only=what.reviewed_only,
        )
        return {"finalized": [as_json(row) for row in rows]}

    @api.get("/invoices/{reference:path}")
    def invoice(reference: str) -> dict[str, Any]:
        """One invoice, by its number or as TENANT/PERIOD, with its document."""
        row = find_invoice(book, reference)
        return {**as_json(row), "document": json.loads(row.document)}

    return api


def as_json(row: InvoiceRow) -> dict[str, Any]:
    """An invoice's head. Pico-units and minor units as strings."""
    return {
        "number": row.number,
        "tenant": row.tenant,
        "period": row.period,
        "status": row.status,
        "currency": row.currency,
        "list_pico": str(row.list_pico),
        "savings_pico": str(row.savings_pico),
        "adjustments_pico": str(row.adjustments_pico),
        "net_pico": str(row.net_pico),
        "total_minor": str(row.total_minor),
        "document_sha256": row.document_sha256,
        "drafted_at": row.drafted_at,
        "revision": row.revision,
        "reviewed_at": row.reviewed_at,
        "finalized_at": row.finalized_at,
        "voided_at": row.voided_at,
        "void_reason": row.void_reason,
        "stripe_invoice_id": row.stripe_invoice_id,
        "stripe_status": row.stripe_status,
    }


@contextmanager
def _warehouse(settings: BillingSettings) -> Iterator[Client]:
    client = connect(settings.clickhouse_url)
    try:
        yield client
    finally:
        client.close()
