"""The invoice pages in a real Chromium: no error, nothing too wide, the document's figures, and a print on A4."""

import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from taximeter.embedded.ports import free_port
from taximeter_billing.book import open_book
from taximeter_billing.exports import ExportedInvoice
from taximeter_billing.service import pages
from taximeter_billing.settings import BillingSettings
from taximeter_schemas.money import currency_exponent
from taximeter_schemas.tenants import Tenant
from tests.browser.chromium import Chromium
from tests.exported_invoices import busy, exported, parcel
from tests.integration.test_exports import keep

pytestmark = pytest.mark.browser
WIDTHS = (390, 1280)
# Elements that reach beyond the window; heads that small screens leave out are moved away on purpose.
_TOO_WIDE = """[...document.querySelectorAll("body *")].filter(one => !one.closest("thead")
    && one.getBoundingClientRect().right > window.innerWidth + 1).map(one => one.outerHTML.slice(0, 120))"""
_SCROLLS = "document.documentElement.scrollWidth > window.innerWidth"


def long_names() -> ExportedInvoice:
    """Many lines, and names without a space to break at."""
    lines = [
        parcel(f"feature-{n}-{'x' * 60}", n * 10**9, n * 10**8, n, model=f"org/{'Model-70B-Instruct-FP8-' * 3}{n}")
        for n in range(1, 30)
    ]
    return exported(lines, tenant=Tenant(id="long", name="Ärger & Söhne Ελλάς Зима 日本 " + "y" * 80), number=None)


INVOICES = {"INV-000042": busy(), "long/2026-11": long_names()}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = BillingSettings(database_url=f"sqlite:///{tmp_path_factory.mktemp('book') / 'book.db'}")
    book = open_book(settings.database_url)
    for invoice in INVOICES.values():
        keep(book, invoice)
    service = FastAPI()
    service.include_router(pages.router(settings, book))
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(service, host="127.0.0.1", port=port, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive() and time.monotonic() < deadline
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(60)
    book.dispose()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    chromium = Chromium(tmp_path_factory.mktemp("chromium"))
    yield chromium
    chromium.close()


def texts(browser: Chromium, selector: str) -> list[str]:
    found: list[Any] = browser.evaluate(
        f"[...document.querySelectorAll({selector!r})].map(one => one.innerText.trim())"
    )
    return [str(text) for text in found]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("path", ["", *(f"/{name}" for name in INVOICES)])
def test_pages_fit_and_report_nothing(site: str, browser: Chromium, path: str, width: int) -> None:
    browser.console.clear()
    browser.open(f"{site}/invoices{path}", width)
    assert browser.evaluate("window.innerWidth") == width
    assert browser.evaluate(_TOO_WIDE) == []
    assert browser.evaluate(_SCROLLS) is False
    assert browser.console == []


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", INVOICES)
def test_the_figures_are_the_documents(site: str, browser: Chromium, name: str, width: int) -> None:
    document = INVOICES[name].document
    places = currency_exponent(document["currency"])
    browser.open(f"{site}/invoices/{name}", width)
    shown = texts(browser, '[data-line] [data-field="amount"]')
    cents = [int(re.sub(r"[^0-9-]", "", text)) for text in shown]
    wanted = sorted(document["lines"], key=lambda line: (line["kind"] != "usage", line["feature"], line["line"]))
    usage = [int(line["amount_minor"]) for line in wanted if line["kind"] == "usage"]
    others = [int(line["amount_minor"]) for line in document["lines"] if line["kind"] != "usage"]
    assert cents == usage + others
    (total,) = texts(browser, '[data-field="total"]')
    assert int(re.sub(r"[^0-9-]", "", total)) == int(document["total_minor"]) and places == 2
    assert INVOICES[name].sha256 in texts(browser, ".receipt dd")


def test_from_the_list_to_an_invoice(site: str, browser: Chromium) -> None:
    browser.open(f"{site}/invoices", 1280)
    assert "495.00 USD" in texts(browser, '[data-reference="INV-000042"] [data-field="total"]')
    address = browser.evaluate("document.querySelector('[data-reference=\"INV-000042\"] a').href")
    browser.open(address, 1280)
    assert texts(browser, "h1") == ["Invoice INV-000042"]


@pytest.mark.parametrize("name", INVOICES)
def test_it_prints_on_a4(site: str, browser: Chromium, name: str) -> None:
    browser.open(f"{site}/invoices/{name}", 1280)
    pdf = browser.print_to_pdf()
    assert pdf.startswith(b"%PDF-")
    sizes = {
        tuple(round(float(size)) for size in box) for box in re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", pdf)
    }
    assert sizes <= {(595, 842), (594, 841), (596, 842)} and sizes, sizes
