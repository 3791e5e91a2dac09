"""`taximeter reconcile`: the laws, checked on live data."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from taximeter.cli.moments import MomentError, moment_of
from taximeter.cli.reconcile_view import report_tables
from taximeter.reconcile.log_ends import LogEndsError
from taximeter.reconcile.run import reconcile_all
from taximeter.reconcile.scope import Pace, Progress, Scope
from taximeter_billing.errors import BillingError
from taximeter_billing.settings import BillingSettings
from taximeter_sql import WarehouseError


def command(
    repair: Annotated[
        bool, typer.Option("--repair", help="Rebuild rollups that differ from the raw rows, then compare again.")
    ] = False,
    since: Annotated[
        str | None,
        typer.Option(
            "--since", metavar="WHEN", help="From then on only: 2026-11-01, 2026-11-01T08:00Z, 36h or 7d (ago)."
        ),
    ] = None,
    tenant: Annotated[
        str | None, typer.Option("--tenant", help="This tenant's usage only; the log as a whole is not looked at.")
    ] = None,
    settle: Annotated[
        float, typer.Option("--settle", min=0.1, help="Seconds that a cell must rest before --repair touches it.")
    ] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Check that nothing was lost, doubled or made up: log = rows, raw = rollup = invoice = Stripe.

    Names each gap and each difference. Safe under live traffic: what differs is looked at again, and counts only when every
    look sees it. Exits 0 when every law holds (after --repair: holds again), 1 when one does not, 2 when it cannot look.

    Examples:

        taximeter reconcile --since 7d

        taximeter reconcile --repair --tenant acme
    """
    settings = BillingSettings()
    with errors_for_people(), progress_line() as progress:
        scope = Scope(tenant, moment_of(since, datetime.now(UTC)) if since else None)
        report = reconcile_all(settings, scope, Pace(settle_seconds=settle), repair=repair, progress=progress)
    if as_json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        console = Console()
        for part in report_tables(report):
            console.print(part)
    if not report.clean:
        raise typer.Exit(1)


@contextmanager
def progress_line() -> Iterator[Progress]:
    """What is being compared, in one line on stderr that goes away; where that is no terminal, nothing."""
    console = Console(stderr=True)
    with console.status("reconciling") as status:

        def show(line: str) -> None:
            status.update(escape(line))

        yield show


@contextmanager
def errors_for_people() -> Iterator[None]:
    """Expected errors are one line and exit status 2; anything else crashes loudly."""
    try:
        yield
    except (BillingError, WarehouseError, LogEndsError, MomentError) as error:
        Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
