"""`taximeter reconcile`: the laws, checked on live data."""

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from taximeter.cli.billing_session import known_tenant
from taximeter.cli.reconcile_view import report_tables
from taximeter.mending.payloads import PayloadsError
from taximeter.mending.rejected import PlaceError
from taximeter.mending.sending import SendError
from taximeter.reconcile.job import Job, look_and_park
from taximeter.reconcile.log_ends import LogEndsError
from taximeter.reconcile.moments import MomentError, moment_of
from taximeter.reconcile.run import reconcile_all
from taximeter.reconcile.scope import Pace, Progress, Scope
from taximeter_billing.errors import BillingError
from taximeter_billing.operations import opened, require_log
from taximeter_billing.settings import BillingSettings
from taximeter_producers.errors import ControlError
from taximeter_producers.health import HealthServer
from taximeter_producers.logs import configure_logging
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
    every: Annotated[
        float | None,
        typer.Option("--every", min=0.01, metavar="MINUTES", help="Go on for ever, as a job that parks tenants."),
    ] = None,
    park: Annotated[
        bool, typer.Option("--park", help="Once, park and free tenants as the job does (for cron); not with --every.")
    ] = False,
    port: Annotated[
        int,
        typer.Option("--port", help="With --every: serve /healthz, /readyz and /metrics there; 0 means not at all."),
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Check that nothing was lost, doubled or made up: log = rows, raw = rollup = invoice = Stripe.

    Names each gap and each difference. Safe under live traffic: a difference
    counts only when every look sees it. Exits 0 when every law holds (after
    --repair: holds again), 1 when one does not, 2 when it cannot look.

    With --every it is a job: a tenant about whom something is found cannot
    be closed or finalized, for any month, until a look finds nothing; the
    others go on. See `taximeter parked list`, `taximeter parked waive`.

    Examples:

        taximeter reconcile --since 7d

        taximeter reconcile --repair --tenant acme

        taximeter reconcile --every 15 --since 35d --repair
    """
    settings, pace = BillingSettings(), Pace(settle_seconds=settle)

    def scope() -> Scope:
        return Scope(tenant, moment_of(since, datetime.now(UTC)) if since else None)

    if every is not None:
        with errors_for_people():
            run_as_job(settings, scope, pace, every * 60, repair=repair, port=port)
        return
    with errors_for_people(), progress_line() as progress:
        if tenant is not None:
            with opened(settings) as book:
                known_tenant(book, tenant)
        else:
            require_log(settings)
        if park:
            look_and_park(settings, scope(), pace, repair=repair, progress=progress)
        report = reconcile_all(settings, scope(), pace, repair=repair, progress=progress)
    if as_json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        console = Console()
        for part in report_tables(report):
            console.print(part)
    if not report.clean:
        raise typer.Exit(1)


def run_as_job(
    settings: BillingSettings, scope: Callable[[], Scope], pace: Pace, every_seconds: float, *, repair: bool, port: int
) -> None:
    """Run until SIGTERM or SIGINT, then end well."""
    scope()  # a moment that is none is told at once
    configure_logging("reconcile")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    job = Job(settings, scope, pace, every_seconds, repair=repair)
    with HealthServer(settings.host, port, job.ready) if port else nullcontext():
        job.run(stop)


@contextmanager
def progress_line() -> Iterator[Progress]:
    """What is being compared, in one line on stderr that goes away; where that is no terminal, nothing."""
    console = Console(stderr=True)
    with console.status("reconciling") as status:

        def show(line: str) -> None:
            status.update(escape(line))

        yield show


_EXPECTED = (
    *(BillingError, WarehouseError, LogEndsError, MomentError, ControlError),
    *(SendError, PlaceError, PayloadsError),
)


@contextmanager
def errors_for_people() -> Iterator[None]:
    """Expected errors are one line and exit status 2; anything else crashes loudly."""
    try:
        yield
    except _EXPECTED as error:
        Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
