"""What finance sends: the PDF and the page of an invoice."""

import re
import zlib

import pytest

from taximeter_billing.exports import ExportError, ExportFormat, render
from taximeter_billing.exports.invoice_view import view
from taximeter_billing.exports.page import invoice_page
from taximeter_billing.exports.pdf import invoice_pdf
from taximeter_schemas.tenants import Tenant
from tests.exported_invoices import busy, exported, parcel


def test_the_amounts_that_are_shown_add_up() -> None:
    it = view(busy())
    shown = [*(feature.amount for feature in it.features), *(line.amount for line in it.adjustments)]
    cents = [int(amount.replace(".", "").replace(",", "")) for amount in shown]
    assert sum(cents) == int(it.total.replace(".", "").replace(",", ""))


def test_it_says_how_savings_were_shared_and_how_well_they_are_known() -> None:
    assert view(busy()).savings_note == (
        "Cache policy fair@3: shared between the tenants of your cache pool. Of what the pool saved, 80.0% known exactly, "
        "from block hashes, 20.0% inferred from token counts."
    )
    own = view(exported([parcel("chat", 1, cached=9)], known={"exact": 0, "inferred": 7, "unattributed": 0}))
    assert "each saving kept by the request that hit" in own.savings_note
    assert "0.0% known exactly" in own.savings_note
    assert "nothing was saved" in view(exported([parcel("chat", 1)], known={"exact": 0})).savings_note


def test_a_name_cannot_write_html() -> None:
    invoice = exported([parcel("<script>", 1)], tenant=Tenant(id="acme", name="Acme <b>Stores</b>"))
    page = invoice_page(invoice)
    assert "Acme &lt;b&gt;Stores&lt;/b&gt;" in page and "<script>" not in page


def test_a_name_cannot_turn_the_text_around_it() -> None:
    invoice = exported(
        [parcel("chat", 1)], tenant=Tenant(id="acme", name="Acme\u202e 00.1\x07\n \u0627\u0644\u0633\u0648\u0642")
    )
    assert view(invoice).customer == "Acme 00.1 \u0627\u0644\u0633\u0648\u0642"
    assert view(exported([parcel("chat", 1)], tenant=Tenant(id="acme", name="\u202e"))).customer == "acme"


def test_a_draft_says_so() -> None:
    assert view(busy(number=None)).title == "Draft invoice"
    assert "not final" in invoice_page(busy(number=None))


def test_the_same_invoice_is_the_same_pdf() -> None:
    first, again = invoice_pdf(busy()), invoice_pdf(busy())
    assert first == again
    assert first.startswith(b"%PDF-")
    assert re.search(rb"/Count 1\b", first)


@pytest.mark.parametrize("models", [1, 4])
def test_no_page_of_a_pdf_ends_with_the_name_of_a_feature(models: int) -> None:
    parcels = [parcel(f"feature-{n:02}", 10, model=f"model-{m}") for n in range(60 // models) for m in range(models)]
    *full, _last = _pages(invoice_pdf(exported(parcels)))
    assert full
    for page in full:
        # A feature's name and amount are bold, those of its models are not; the last two texts are the page's foot.
        assert [bold for bold, _size in page[-5:-2]] != [False, True, True]


@pytest.mark.parametrize("features", [21, 22])
def test_no_page_of_a_pdf_holds_hashes_alone(features: int) -> None:
    parcels = [parcel(f"feature-{n:02}", 10, model=f"model-{m}") for n in range(features) for m in range(1 + n % 3)]
    *_full, last = _pages(invoice_pdf(exported(parcels)))
    sizes = [size for _bold, size in last]
    assert sizes.index(12.0) < sizes.index(7.0)  # what is to pay, then the receipt


def _pages(pdf: bytes) -> list[list[tuple[bool, float]]]:
    """Of each page, its texts in order: whether it is bold, and its size."""
    pages = []
    for found in re.finditer(rb"/Length (\d+)\n>>\nstream\n", pdf):
        try:
            drawn = zlib.decompress(pdf[found.end() : found.end() + int(found[1])])
        except zlib.error:
            continue
        if b" Tj ET" not in drawn:
            continue
        font = (False, 0.0)
        texts = []
        for piece in re.finditer(rb"BT /F(\d) ([\d.]+) Tf ET|\) Tj ET", drawn):
            if piece[1]:
                font = (piece[1] == b"2", float(piece[2]))
            else:
                texts.append(font)
        pages.append(texts)
    return pages


def test_a_pdf_carries_names_of_other_scripts_and_tells_what_its_font_lacks() -> None:
    names = "Łódź Ελλάς Зима"
    plain = invoice_pdf(exported([parcel("chat", 1)], tenant=Tenant(id="a", name=names)))
    odd = invoice_pdf(exported([parcel("chat", 1)], tenant=Tenant(id="a", name=f"{names} 日")))
    assert "Ł" in _unicode(plain) and "Ε" in _unicode(plain) and "З" in _unicode(plain)
    assert len(odd) > len(plain)  # the line about what is lacking


def _unicode(pdf: bytes) -> str:
    """What the PDF's fonts say their glyphs stand for."""
    return "".join(chr(int(code, 16)) for code in re.findall(rb"<[0-9A-F]{4}> <([0-9A-F]{4})>", pdf))


@pytest.mark.parametrize("form", [ExportFormat.PDF, ExportFormat.HTML, ExportFormat.JSON])
def test_a_month_is_no_single_document(form: ExportFormat) -> None:
    with pytest.raises(ExportError, match="holds one invoice"):
        render([busy(), busy()], form, "2026-11")


@pytest.mark.parametrize("form", list(ExportFormat))
def test_every_format_has_a_file_of_a_safe_name(form: ExportFormat) -> None:
    rendered = render([busy(number=None)], form, "acme/2026-11")
    assert rendered.content and "/" not in rendered.name and rendered.name.startswith("acme-2026-11.")
