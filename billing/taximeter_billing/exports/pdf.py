"""An invoice as a PDF for A4: the same bytes for the same invoice, with the font inside.

Noto Sans covers Latin, Greek, Cyrillic and Devanagari; a character outside it is left out, and a line says which. The HTML
page has no such limit.
"""

import logging
import string
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

from fpdf import FPDF, FontFace
from fpdf.enums import MethodReturnValue, WrapMode, XPos, YPos

from taximeter_billing.exports.fonts import lacking, write_fonts
from taximeter_billing.exports.invoice_source import ExportedInvoice
from taximeter_billing.exports.invoice_view import InvoiceView, view

_FONT = "NotoSans"
_INK, _QUIET, _LINE, _FILL = (28, 28, 28), (102, 102, 102), (214, 214, 214), (244, 245, 247)
_WIDTHS = (40, 17, 24, 22, 18, 24, 25, 20, 0.01)
"""The last is empty: a cell in it that spans two rows keeps them on one page."""
_PADDING = (1.1, 1, 1.1, 1)
_INDENTED = (1.1, 1, 1.1, 4)
_NONE = (0.0, 0.0, 0.0, 0.0)
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


class _Sheet(FPDF):
    """A4 with the invoice's name and the page's number at its foot."""

    def __init__(self, name: str) -> None:
        super().__init__(format="A4")
        self.foot = name

    def footer(self) -> None:
        """At the end of every page."""
        self.set_y(-13)
        self.set_font(_FONT, size=7.5)
        self.set_text_color(*_QUIET)
        self.cell(95, 5, self.foot)
        self.cell(0, 5, f"Page {self.page_no()} of {{nb}}", align="R")


def invoice_pdf(invoice: ExportedInvoice) -> bytes:
    """The PDF's bytes."""
    it = view(invoice)
    for name in ("fontTools", "fpdf"):
        logging.getLogger(name).setLevel(logging.ERROR)  # they tell every table of a font that they leave out
    shown = repr(asdict(it))
    with TemporaryDirectory() as folder:
        pdf = _sheet(it, invoice.finalized_at or _EPOCH)
        for style, file in write_fonts(Path(folder), f"{shown}{string.printable}").items():
            pdf.add_font(_FONT, style, file)
        pdf.add_page()
        _head(pdf, it)
        _usage(pdf, it)
        _adjustments(pdf, it)
        # Together, so that no page holds hashes alone.
        with pdf.unbreakable() as recorder:
            end = cast(_Sheet, recorder)  # it records what is called on the sheet
            _to_pay(end, it)
            _notes(end, it, ", ".join(lacking(shown)))
        return bytes(pdf.output())


def _sheet(it: InvoiceView, made_at: datetime) -> _Sheet:
    pdf = _Sheet(f"{it.issuer}   {it.title}")
    pdf.set_creation_date(made_at)
    pdf.set_title(f"{it.title}: {it.customer}")
    pdf.set_author(it.issuer)
    pdf.set_lang("en")
    pdf.set_margins(10, 14, 10)
    pdf.set_auto_page_break(True, 18)
    return pdf


def _head(pdf: _Sheet, it: InvoiceView) -> None:
    pdf.set_text_color(*_INK)
    pdf.set_font(_FONT, "B", 18)
    pdf.cell(110, 9, it.title)
    pdf.set_font(_FONT, "B", 10)
    pdf.multi_cell(0, 5, it.issuer, align="R", new_x=XPos.LMARGIN, new_y=YPos.NEXT)
    pdf.set_font(_FONT, size=8.5)
    pdf.set_text_color(*_QUIET)
    for line in [*it.issuer_address, *([f"Tax ID {it.issuer_tax_id}"] if it.issuer_tax_id else [])]:
        pdf.cell(0, 4.2, line, align="R", new_x=XPos.LMARGIN, new_y=YPos.NEXT)
    pdf.ln(6)
    top = pdf.get_y()
    _pair(pdf, "Bill to", [it.customer, *filter(None, (f"Customer {it.customer_id}", it.email))])
    low = pdf.get_y()
    pdf.set_y(top)
    _pair(pdf, "Period", [it.period, it.days, f"Issued {it.issued}" if it.final else it.issued], 110)
    pdf.set_y(max(low, pdf.get_y()) + 5)


def _pair(pdf: _Sheet, head: str, lines: list[str], left: float = 10) -> None:
    width = 90
    pdf.set_x(left)
    pdf.set_text_color(*_QUIET)
    pdf.set_font(_FONT, size=7.5)
    pdf.cell(width, 4, head.upper(), new_x=XPos.LMARGIN, new_y=YPos.NEXT)
    pdf.set_text_color(*_INK)
    for place, line in enumerate(lines):
        pdf.set_font(_FONT, "" if place else "B", 8.5 if place else 10)
        pdf.set_x(left)
        pdf.multi_cell(width, 4.6, line, align="L", new_x=XPos.LMARGIN, new_y=YPos.NEXT)


def _usage(pdf: _Sheet, it: InvoiceView) -> None:
    if not it.features:
        return
    pdf.set_font(_FONT, size=7.8)
    pdf.set_draw_color(*_LINE)
    head = FontFace(emphasis="BOLD", fill_color=_FILL, color=_INK)
    bold = FontFace(emphasis="BOLD")
    names = ("Feature and model", "Requests", "Input", "Of it cached", "Output", "List", "Cache savings", it.currency)
    with pdf.table(
        col_widths=_WIDTHS,
        text_align=("LEFT", *["RIGHT"] * 8),
        borders_layout="HORIZONTAL_LINES",
        headings_style=head,
        line_height=4.4,
        v_align="TOP",
        padding=_PADDING,
    ) as table:
        table.row((*names, ""))
        for feature in it.features:
            row = table.row(style=bold)
            row.cell(feature.name, colspan=7)
            row.cell(feature.amount)
            row.cell("", rowspan=2 if feature.lines else 1, padding=_NONE)
            for place, line in enumerate(feature.lines):
                row = table.row()
                row.cell(line.model, padding=_INDENTED)
                listed = _with_tiers(line.listed, line.tiers)
                for text in (line.requests, line.input, line.cached, line.output, listed, line.savings, line.amount):
                    row.cell(text)
                if place:
                    row.cell("", padding=_NONE)
        row = table.row(style=bold)
        for text, span in (("Usage", 5), (_with_tiers(it.listed, it.tiers), 1), (it.savings, 1), (it.usage, 1)):
            row.cell(text, colspan=span)
        row.cell("", padding=_NONE)


def _with_tiers(listed: str, tiers: str) -> str:
    """The list price, and under it what the contract's tiers make more or less of it."""
    return f"{listed}\ntiers {tiers}" if tiers.strip("-0.") else listed


def _adjustments(pdf: _Sheet, it: InvoiceView) -> None:
    pdf.ln(3)
    pdf.set_font(_FONT, size=8.5)
    for line in it.adjustments:
        height = pdf.multi_cell(122, 5.4, line.text, align="L", dry_run=True, output=MethodReturnValue.HEIGHT)
        if pdf.will_page_break(cast(float, height)):
            pdf.add_page()
        pdf.set_text_color(*_INK)
        pdf.cell(40, 5.4, line.kind)
        pdf.set_text_color(*_QUIET)
        left, top = pdf.get_x(), pdf.get_y()
        pdf.multi_cell(122, 5.4, line.text, align="L", new_x=XPos.LMARGIN, new_y=YPos.NEXT)
        low = pdf.get_y()
        pdf.set_xy(left + 122, top)
        pdf.set_text_color(*_INK)
        pdf.cell(27, 5.4, line.amount, align="R")
        pdf.set_y(low)


def _to_pay(pdf: _Sheet, it: InvoiceView) -> None:
    pdf.ln(1.5)
    pdf.set_text_color(*_INK)
    pdf.set_fill_color(*_FILL)
    pdf.set_font(_FONT, "B", 12)
    pdf.cell(110, 10, "  To pay", fill=True)
    pdf.cell(0, 10, f"{it.total} {it.currency} ", align="R", fill=True, new_x=XPos.LMARGIN, new_y=YPos.NEXT)


def _notes(pdf: _Sheet, it: InvoiceView, missing: str) -> None:
    pdf.ln(4)
    said = [
        it.savings_note,
        f"Exactly {it.exact}; rounded once, half up, at the total ({it.rounding}). Taxes, where they are due, are added when "
        "the payment is collected.",
    ]
    if missing:
        said.append(f"This document's font lacks these characters, left out here: {missing}")
    pdf.set_font(_FONT, size=8)
    pdf.set_text_color(*_QUIET)
    for text in said:
        pdf.multi_cell(0, 4.3, text, align="L", new_x=XPos.LMARGIN, new_y=YPos.NEXT)
        pdf.ln(1)
    pdf.ln(1)
    pdf.set_font(_FONT, size=7)
    for name, value in it.receipt:
        pdf.multi_cell(
            0, 3.8, f"{name}: {value}", align="L", wrapmode=WrapMode.CHAR, new_x=XPos.LMARGIN, new_y=YPos.NEXT
        )
