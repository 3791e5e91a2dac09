"""Exports over HTTP: an invoice as PDF, HTML, CSV, JSON or FOCUS, and a month as CSV or FOCUS."""

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import Response
from sqlalchemy import Engine

from taximeter_billing.exports import ExportFormat, Rendered
from taximeter_billing.exports.from_book import export_invoice, export_period
from taximeter_billing.settings import BillingSettings

Format = Annotated[ExportFormat, Query(alias="format", description="pdf, html, csv, json or focus")]


def router(settings: BillingSettings, book: Engine) -> APIRouter:
    """The routes under /v1."""
    api = APIRouter(tags=["exports"])

    @api.get("/exports/periods/{period}")
    def month(period: str, form: Format = ExportFormat.FOCUS, drafts: bool = False) -> Response:
        """All final invoices of a month, as csv or focus; with its drafts if they are wanted."""
        return _file(export_period(book, settings, period, form, drafts=drafts))

    @api.get("/exports/{reference:path}")
    def one(reference: str, form: Format = ExportFormat.PDF) -> Response:
        """One invoice, by its number or as TENANT/PERIOD."""
        return _file(export_invoice(book, settings, reference, form))

    return api


def _file(rendered: Rendered) -> Response:
    headers = {
        "Content-Disposition": f'attachment; filename="{rendered.name}"',
        "Cache-Control": "no-store",
        "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    }
    return Response(rendered.content, media_type=rendered.media_type, headers=headers)
