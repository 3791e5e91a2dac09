"""Invoices for a browser: a list, and a page for each that prints well."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sqlalchemy import Engine

from taximeter_billing.book import InvoiceRow
from taximeter_billing.closing import find_invoice, list_invoices, list_parked
from taximeter_schemas.money import currency_exponent, format_pico

# No script, no picture, nothing from elsewhere: a page of billing needs none of it.
_HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'", "Cache-Control": "no-store"}


def router(book: Engine) -> APIRouter:
    """The pages /invoices and /invoices/REFERENCE."""
    pages = APIRouter(include_in_schema=False)
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined
    )
    templates.filters["pico"] = lambda amount, currency: format_pico(int(amount), currency, 6)
    templates.filters["figure"] = figure
    templates.filters["minor"] = minor

    @pages.get("/invoices")
    def index(period: str | None = None) -> HTMLResponse:
        shown = {"invoices": list_invoices(book, period), "parked": list_parked(book, period), "reference": reference}
        return HTMLResponse(templates.get_template("invoices.html").render(**shown), headers=_HEADERS)

    @pages.get("/invoices/{name:path}")
    def invoice(name: str) -> HTMLResponse:
        row = find_invoice(book, name)
        document: dict[str, Any] = json.loads(row.document)
        shown = templates.get_template("invoice.html").render(invoice=row, document=document)
        return HTMLResponse(shown, headers=_HEADERS)

    return pages


def figure(amount_pico: str | int, currency: str) -> str:
    """Pico-units to six places, for a column whose head names the currency."""
    return format_pico(int(amount_pico), currency, 6).removesuffix(f" {currency}")


def minor(amount_minor: str | int, currency: str) -> str:
    """Minor units for people: 1250 of USD is "12.50 USD"."""
    return f"{Decimal(amount_minor).scaleb(-currency_exponent(currency)):,} {currency}"


def reference(row: InvoiceRow) -> str:
    """What an invoice is called: its number, or of a draft TENANT/PERIOD."""
    return row.number or f"{row.tenant}/{row.period}"
