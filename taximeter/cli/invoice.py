"""`taximeter invoice`: close a month, finalize its drafts, push them to Stripe."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table

from taximeter.cli.apply import actor
from taximeter.cli.billing_session import errors_for_people, known_tenant
from taximeter.cli.invoice_view import invoice_tables
from taximeter.cli.months import Month, OnlyMonth
from taximeter_billing.book import InvoiceRow
from taximeter_billing.closing import close_period, finalize_period, find_invoice, list_invoices, list_parked
from taximeter_billing.credit_notes import give_back, list_notes
from taximeter_billing.lifecycle import CREDIT_NOTES, review, void_invoice
from taximeter_billing.operations import opened
from taximeter_billing.payments.errors import PaymentError
from taximeter_billing.settings import BillingSettings
from taximeter_billing.warehouse import UsageReader
from taximeter_schemas.money import currency_exponent, format_pico
from taximeter_sql import connect

app = typer.Typer(help="Invoices: close a month, look, finalize, push to Stripe.", no_args_is_help=True)

_NAMES_SHOWN = 10
OnlyTenant = Annotated[str | None, typer.Option("--tenant", help="This tenant only.")]


console = Console()


@app.command()
def close(
    period: Month,
    tenant: OnlyTenant = None,
    early: Annotated[bool, typer.Option("--early", help="Close before the month and its grace are over.")] = False,
) -> None:
    """Draft the month's invoices from usage. Doing it again rebuilds drafts and leaves finalized invoices alone."""
    settings = BillingSettings()
    with errors_for_people(), opened(settings) as book, _reader(settings) as reader, _bar() as bar:
        task = bar.add_task(f"closing {period}")

        def progress(names: str, done: int, every: int) -> None:
            bar.update(task, description=f"closing {period}: {done} of {every} tenants ({names})")

        closed = close_period(
            book,
            reader,
            period,
            datetime.now(UTC),
            grace_hours=settings.grace_hours,
            early=early,
            only=tenant,
            progress=progress,
        )
    for what, tenants in (("drafted", closed.drafted), ("unchanged", closed.unchanged), ("final", closed.final)):
        if tenants:
            console.print(f"{what}: {', '.join(tenants)}", highlight=False)
    if closed.without_usage:
        console.print(f"[dim]without usage: {', '.join(closed.without_usage)}[/]", highlight=False)
    for name, reason in closed.parked.items():
        console.print(f"[yellow]parked: {name}: {escape(reason)}[/]", highlight=False)
    for name in closed.overtaken:
        console.print(
            f"[yellow]left alone: {name}: somebody else changed its invoice meanwhile; close the period again[/]",
            highlight=False,
        )
    for name, reason in closed.late.items():
        console.print(f"[yellow]late usage: {name}: {escape(reason)}[/]", highlight=False)
    for month, names in closed.uninvoiced.items():
        more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        told = ", ".join(names[:_NAMES_SHOWN]) + more
        console.print(
            f"[yellow]not invoiced: usage or cache storage of {month} of {told}; close that month too[/]",
            highlight=False,
        )
    for name in closed.undeclared:
        console.print(
            f"[yellow]not declared: usage of {escape(name)}; declare it again, then close the period again[/]",
            highlight=False,
        )
    for name, pico in closed.refunds.items():
        console.print(f"[yellow]credit note drafted: {name}: {-pico} pico-units[/]", highlight=False)


@app.command()
def finalize(
    period: Month,
    tenant: OnlyTenant = None,
    reviewed_only: Annotated[
        bool, typer.Option("--reviewed-only", help="Only drafts that `invoice review` has noted.")
    ] = False,
) -> None:
    """Finalize the month's drafts with gapless numbers. Nothing finalized changes; doing it again does nothing."""
    settings = BillingSettings()
    with errors_for_people(), opened(settings) as book:
        known_tenant(book, tenant)
        rows = finalize_period(
            book, period, settings.invoice_series, datetime.now(UTC), tenant, reviewed_only=reviewed_only
        )
        parked = [row for row in list_parked(book, period) if tenant in (None, row.tenant)]
    for row in rows:
        console.print(f"{row.number}: {row.tenant}, {minor(row.total_minor, row.currency)}", highlight=False)
    for held in parked:
        console.print(f"[yellow]parked: {held.tenant}: {escape(held.reason)}[/]", highlight=False)
    if not rows:
        console.print("no drafts to finalize")


@app.command("review")
def review_draft(reference: Annotated[str, typer.Argument(help="A draft, as TENANT/PERIOD.")]) -> None:
    """Note that a draft was looked at and is right. A close that changes the draft takes the note away."""
    with errors_for_people(), opened(BillingSettings()) as book:
        row = review(book, reference, actor(), datetime.now(UTC))
    console.print(f"reviewed {row.tenant}/{row.period}: {minor(row.total_minor, row.currency)}", highlight=False)


@app.command()
def void(
    number: Annotated[str, typer.Argument(help="The number of a final invoice.")],
    reason: Annotated[str, typer.Option(help="Why; kept with it.")],
) -> None:
    """Void a final invoice. It keeps its number, its credits return, and closing drafts another in its place."""
    with errors_for_people(), opened(BillingSettings()) as book:
        row = void_invoice(book, number, reason, actor(), datetime.now(UTC))
    console.print(f"{row.number} is void; close {row.period} again for another draft", highlight=False)


@app.command()
def credit(
    number: Annotated[str, typer.Argument(help="The number of a final invoice.")],
    reason: Annotated[str, typer.Option(help="Why; printed on the credit note.")],
    amount: Annotated[str | None, typer.Option(help="How much, as 12.50; all that is left without it.")] = None,
) -> None:
    """Give a sum back on a final invoice, by a credit note with a number of its own."""
    with errors_for_people(), opened(BillingSettings()) as book:
        note = give_back(book, number, amount, reason, CREDIT_NOTES, actor(), datetime.now(UTC))
    console.print(f"{note.number} on {number}: {minor(note.total_minor, note.currency)}", highlight=False)


@app.command()
def notes(period: OnlyMonth = None) -> None:
    """Credit notes, drafts included."""
    with errors_for_people(), opened(BillingSettings()) as book:
        rows = list_notes(book, period)
    table = Table("number", "invoice", "tenant", "status", "reason", "amount", box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        amount = minor(row.total_minor, row.currency)
        table.add_row(row.number or "-", row.invoice, row.tenant, row.status, escape(row.reason), amount)
    console.print(table)


@app.command("list")
def list_all(period: OnlyMonth = None) -> None:
    """All invoices, drafts included, and parked tenants with the reason."""
    with errors_for_people(), opened(BillingSettings()) as book:
        rows, parked = list_invoices(book, period), list_parked(book, period)
    console.print(invoices_table(rows))
    for held in parked:
        console.print(f"[yellow]parked: {held.tenant} {held.period}: {escape(held.reason)}[/]", highlight=False)


@app.command()
def show(reference: Annotated[str, typer.Argument(help="An invoice's number, or TENANT/PERIOD.")]) -> None:
    """One invoice: its lines with list, cache savings and net, and what it was made from."""
    with errors_for_people(), opened(BillingSettings()) as book:
        row = find_invoice(book, reference)
    for part in invoice_tables(row):
        console.print(part)


@app.command()
def push(period: Month, tenant: OnlyTenant = None) -> None:
    """Create the month's finalized invoices in Stripe, the total compared before finalizing; then void there what was voided,
    and issue the month's credit notes. Again: nothing changes."""
    from taximeter_billing.pushing import push_corrections, push_period

    settings, failed = BillingSettings(), 0
    with errors_for_people(), opened(settings) as book:
        known_tenant(book, tenant)
        for row, result in push_period(book, settings, period, tenant):
            if isinstance(result, PaymentError):
                failed += 1
                console.print(f"[red]{row.number}: {escape(str(result))}[/]", highlight=False, soft_wrap=True)
                continue
            made = "created" if result.created else "was there"
            console.print(f"{row.number}: {result.stripe_invoice_id} {made}, {result.status}", highlight=False)
        for number, done in push_corrections(book, settings, period, tenant):
            failed += isinstance(done, PaymentError)
            colour = "red" if isinstance(done, PaymentError) else "default"
            console.print(f"[{colour}]{number}: {escape(str(done))}[/]", highlight=False, soft_wrap=True)
    if failed:
        Console(stderr=True).print(f"[red]{failed} not pushed;[/] run it again when the cause is mended")
        raise typer.Exit(1)


@contextmanager
def _reader(settings: BillingSettings) -> Iterator[UsageReader]:
    client = connect(settings.clickhouse_url)
    try:
        yield UsageReader(client)
    finally:
        client.close()


def _bar() -> Progress:
    return Progress(SpinnerColumn(), TextColumn("{task.description}"), transient=True, console=Console(stderr=True))


def invoices_table(rows: list[InvoiceRow]) -> Table:
    """Invoices as a table: number, list, savings, and what is to be paid."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("number", "tenant", "period", "status"):
        table.add_column(name, no_wrap=True)
    for name in ("list", "savings", "to pay"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("Stripe")
    for row in rows:
        places = currency_exponent(row.currency)
        amounts = [
            format_pico(amount, row.currency, places).removesuffix(f" {row.currency}")
            for amount in (row.list_pico, row.savings_pico)
        ]
        total = minor(row.total_minor, row.currency)
        table.add_row(row.number or "-", row.tenant, row.period, row.status, *amounts, total, row.stripe_status or "-")
    return table


def minor(amount_minor: int, currency: str) -> str:
    """Minor units for people: 1250 of USD is "12.50 USD"."""
    return f"{Decimal(amount_minor).scaleb(-currency_exponent(currency)):,} {currency}"
