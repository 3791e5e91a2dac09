"""`taximeter parked`: whose invoicing stands still, why, and letting it go on all the same."""

import getpass
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from taximeter.cli.months import OnlyMonth
from taximeter.cli.reconcile import errors_for_people
from taximeter_billing.closing import list_parked
from taximeter_billing.operations import opened
from taximeter_billing.parking import EVERY_PERIOD, list_findings, waive
from taximeter_billing.settings import BillingSettings

app = typer.Typer(
    help="Parked tenants: whose invoicing stands still until something agrees again, and why.", no_args_is_help=True
)


@app.command("list")
def list_all(
    period: OnlyMonth = None,
) -> None:
    """Who is parked, for which month, and why. "every" stands for what `taximeter reconcile --every` found."""
    with errors_for_people(), opened(BillingSettings()) as book:
        rows = list_parked(book, period)
    console = Console()
    if not rows:
        console.print("nobody is parked")
        return
    table = Table("tenant", "month", "since (UTC)", "why", box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        month = "every" if row.period == EVERY_PERIOD else row.period
        table.add_row(row.tenant, month, f"{row.parked_at:%Y-%m-%d %H:%M}", Text(row.reason))
    console.print(table)


@app.command()
def show(tenant: Annotated[str, typer.Argument(help="The tenant.")]) -> None:
    """Everything that reconciliation found about a tenant, and what was waived by whom."""
    with errors_for_people(), opened(BillingSettings()) as book:
        rows = list_findings(book, tenant)
    console = Console()
    if not rows:
        console.print(f"nothing was found about {tenant}", highlight=False, markup=False)
        return
    table = Table("found (UTC)", "seen last", "what", "waived", box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        waived = f"by {row.waived_by}: {row.waived_because}" if row.waived_at else "-"
        table.add_row(f"{row.found_at:%Y-%m-%d %H:%M}", f"{row.seen_at:%H:%M}", Text(row.finding), Text(waived))
    console.print(table)


@app.command("waive")
def waive_all(
    tenant: Annotated[str, typer.Argument(help="The tenant.")],
    because: Annotated[str, typer.Option("--because", help="Why invoicing may go on; kept in the audit log.")],
    actor: Annotated[str | None, typer.Option("--by", help="Who says so (default: your login).")] = None,
) -> None:
    """Let a tenant's invoicing go on in spite of what stands now, such as numbers of a producer that are lost for good.

    What is found later, and is not the same, parks the tenant again.
    """
    with errors_for_people(), opened(BillingSettings()) as book:
        waived = waive(book, tenant, because, actor or getpass.getuser(), datetime.now(UTC))
    console = Console()
    for finding in waived:
        console.print(Text(f"waived: {finding}"))
