"""`taximeter export`: an invoice as PDF, HTML, CSV, JSON or FOCUS; a month as CSV or FOCUS."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from taximeter.cli.billing_session import errors_for_people
from taximeter.cli.months import month
from taximeter_billing.exports import ExportFormat
from taximeter_billing.exports.from_book import export_invoice, export_period
from taximeter_billing.operations import opened
from taximeter_billing.settings import BillingSettings


def command(
    invoice: Annotated[str | None, typer.Argument(help="An invoice's number, or TENANT/PERIOD.")] = None,
    period: Annotated[
        str | None, typer.Option("--period", callback=month, help="All invoices of this month, as YYYY-MM.")
    ] = None,
    form: Annotated[ExportFormat, typer.Option("--format", help="A month is csv or focus.")] = ExportFormat.PDF,
    out: Annotated[Path | None, typer.Option("--out", help="The file; standard output without it.")] = None,
    drafts: Annotated[bool, typer.Option("--drafts", help="The month's drafts too.")] = False,
) -> None:
    """Write an invoice, or a month of them, as a file."""
    if (invoice is None) == (period is None):
        raise typer.BadParameter("an invoice or --period is needed, and not both")
    if form is ExportFormat.PDF and out is None and sys.stdout.isatty():
        raise typer.BadParameter("a terminal cannot show a PDF; name a file: --out invoice.pdf")
    settings = BillingSettings()
    with errors_for_people(), opened(settings) as book:
        if period is not None:
            rendered = export_period(book, settings, period, form, drafts=drafts)
        else:
            rendered = export_invoice(book, settings, invoice or "", form)
    if out is None:
        sys.stdout.buffer.write(rendered.content)
        sys.stdout.buffer.flush()
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(rendered.content)
    typer.echo(f"{out}: {len(rendered.content):,} bytes", err=True)
