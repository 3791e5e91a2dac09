"""Exports over HTTP and from the command line, of invoices in a real book."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy import Engine
from starlette.testclient import TestClient
from typer.testing import CliRunner

from taximeter.cli.main import app
from taximeter_billing.book import InvoiceRow, open_book, writing
from taximeter_billing.errors import BillingError
from taximeter_billing.exports import ExportedInvoice
from taximeter_billing.service import exports, pages
from taximeter_billing.settings import BillingSettings
from tests.exported_invoices import busy


def keep(book: Engine, invoice: ExportedInvoice) -> None:
    """Write an invoice into the book as closing and finalizing do."""
    amounts = {name: int(invoice.document[name]) for name in ("list_pico", "savings_pico", "net_pico", "total_minor")}
    with writing(book) as session:
        row = InvoiceRow(
            tenant=invoice.tenant,
            period=invoice.document["period"]["label"],
            status=invoice.status,
            number=invoice.number,
            currency=invoice.currency,
            document=invoice.canonical,
            document_sha256=invoice.sha256,
            drafted_at=datetime(2026, 12, 4, tzinfo=UTC),
            finalized_at=invoice.finalized_at,
            **amounts,
        )
        session.add(row)


@pytest.fixture
def settings(book_url: str) -> BillingSettings:
    return BillingSettings(database_url=book_url, issuer_name="Works", issuer_address="One\\nTwo")


@pytest.fixture
def book(settings: BillingSettings) -> Iterator[Engine]:
    engine = open_book(settings.database_url)
    keep(engine, busy())
    yield engine
    engine.dispose()


@pytest.fixture
def api(settings: BillingSettings, book: Engine) -> TestClient:
    service = FastAPI()
    service.include_router(exports.router(settings, book), prefix="/v1")
    service.include_router(pages.router(settings, book))

    @service.exception_handler(BillingError)
    def refused(_request: Request, error: BillingError) -> Response:
        return JSONResponse({"code": error.code}, error.status)

    return TestClient(service)


def test_an_invoice_in_every_format(api: TestClient) -> None:
    kinds = {
        "pdf": "application/pdf",
        "html": "text/html",
        "csv": "text/csv",
        "json": "application/json",
        "focus": "text/csv",
    }
    for name, kind in kinds.items():
        answer = api.get(f"/v1/exports/INV-000042?format={name}")
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind)
        assert "INV-000042." in answer.headers["content-disposition"]
    assert api.get("/v1/exports/INV-000042?format=json").text == busy().canonical
    assert "Works<" in api.get("/v1/exports/acme/2026-11?format=html").text


def test_a_month(api: TestClient) -> None:
    answer = api.get("/v1/exports/periods/2026-11")
    assert answer.text.startswith("AllocatedMethodDetails,")
    refusals = {"2026-10": 422, "2026-11?format=pdf": 422}
    assert {path: api.get(f"/v1/exports/periods/{path}").status_code for path in refusals} == refusals
    assert api.get("/v1/exports/INV-9").status_code == 404


def test_the_pages_show_it(api: TestClient) -> None:
    assert "495.00 USD" in api.get("/invoices").text
    assert "495.00 USD" in api.get("/invoices/INV-000042").text


def test_the_command_line(settings: BillingSettings, book: Engine, tmp_path: Path) -> None:
    def run(*words: str) -> int:
        environment = {"TAXIMETER_DATABASE_URL": settings.database_url}
        return CliRunner().invoke(app, ["export", *words], env=environment).exit_code

    pdf, month = tmp_path / "out" / "invoice.pdf", tmp_path / "month.csv"
    assert run("INV-000042", "--format", "pdf", "--out", str(pdf)) == 0
    assert pdf.read_bytes().startswith(b"%PDF-")
    assert run("--period", "2026-11", "--format", "focus", "--out", str(month)) == 0
    assert month.read_text().count("\n") > 10
    assert [run(), run("INV-9"), run("--period", "2026-11", "--format", "pdf"), run("--period", "soon")] == [2, 2, 2, 2]
