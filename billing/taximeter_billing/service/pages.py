"""Invoices for a browser: a list, and a page for each that prints well."""

from decimal import Decimal

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from sqlalchemy import Engine

from taximeter_billing.book import InvoiceRow
from taximeter_billing.closing import find_invoice, list_invoices, list_parked
from taximeter_billing.exports.from_book import as_exported
from taximeter_billing.exports.page import environment, invoice_page
from taximeter_billing.settings import BillingSettings
from taximeter_schemas.money import currency_exponent, format_pico

# No script, no picture, nothing from elsewhere: a page of billing needs none of it.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:",
    "Cache-Control": "no-store",
}


def router(settings: BillingSettings, book: Engine) -> APIRouter:
    """The pages /invoices and /invoices/REFERENCE."""
    pages = APIRouter(include_in_schema=False)
    templates = environment()
    templates.filters["pico"] = lambda amount, currency: format_pico(int(amount), currency, 6)
    templates.filters["minor"] = minor

    @pages.get("/invoices")
    def index(period: str | None = None) -> HTMLResponse:
        shown = {"invoices": list_invoices(book, period), "parked": list_parked(book, period), "reference": reference}
        return HTMLResponse(templates.get_template("invoices.html").render(**shown), headers=_HEADERS)

    @pages.get("/invoices/{name:path}")
    def invoice(name: str) -> HTMLResponse:
        return HTMLResponse(invoice_page(as_exported(find_invoice(book, name), settings)), headers=_HEADERS)

    return pages


def minor(amount_minor: str | int, currency: str) -> str:
    """Minor units for people: 1250 of USD is "12.50 USD"."""
    return f"{Decimal(amount_minor).scaleb(-currency_exponent(currency)):,} {currency}"


def reference(row: InvoiceRow) -> str:
    """What an invoice is called: its number, or of a draft TENANT/PERIOD."""
    return row.number or f"{row.tenant}/{row.period}"
