"""`taximeter reconcile`: the laws, checked on live data."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from taximeter.cli.reconcile_view import report_tables
from taximeter.reconcile.log_ends import LogEndsError
from taximeter.reconcile.run import reconcile_all
from taximeter_billing.errors import BillingError
from taximeter_billing.settings import BillingSettings
from taximeter_sql import WarehouseError


def command(as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False) -> None:
    """Check that nothing was lost, doubled or made up: log = rows, raw = rollup = invoice = Stripe. Exits 1 when not."""
    try:
        report = reconcile_all(BillingSettings())
    except (BillingError, WarehouseError, LogEndsError) as error:
        Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    if as_json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        console = Console()
        for part in report_tables(report):
            console.print(part)
    if not report.clean:
        raise typer.Exit(1)
