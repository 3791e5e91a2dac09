"""`taximeter stripe`: what Stripe has, what it told us, and whether the two agree."""

import json
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table

from taximeter.cli.billing_session import book_and_usage, errors_for_people, known_tenant
from taximeter.cli.invoice import minor
from taximeter.cli.months import OnlyMonth, month
from taximeter_billing.closing import list_invoices
from taximeter_billing.errors import NotFoundError
from taximeter_billing.metering import SETTLE_MINUTES, Count, export_usage
from taximeter_billing.operations import opened
from taximeter_billing.pushing import compare_pushed
from taximeter_billing.settings import BillingSettings
from taximeter_billing.stripe_inbox import list_events, payments_of

app = typer.Typer(
    help="Stripe: compare every invoice, see payments, see what Stripe told, send usage to its meters.",
    no_args_is_help=True,
)

console = Console()


@app.command()
def reconcile(
    period: OnlyMonth = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Compare every pushed invoice with Stripe's by total and lines, and note how its payment stands.

    Exit status 1 when anything differs, 2 when Stripe does not answer.
    """
    settings = BillingSettings()
    found: dict[str, list[str]] = {}
    with errors_for_people(), opened(settings) as book:
        progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), transient=True, console=Console(stderr=True)
        )
        with progress as bar:
            task = bar.add_task("asking Stripe")
            for row, problems in compare_pushed(book, settings, period):
                found[row.number or row.tenant] = problems
                bar.update(task, description=f"asking Stripe: {len(found)} invoices ({row.number})")
        payments = payments_of(book, found)
    if as_json:
        page = {
            number: {"differences": problems, "payment": payments[number].status if number in payments else None}
            for number, problems in found.items()
        }
        print(json.dumps(page, indent=2))
    else:
        for number, problems in found.items():
            for problem in problems:
                console.print(f"[red]{number}: {escape(problem)}[/]", highlight=False, soft_wrap=True)
            if number in payments and payments[number].disputes:
                console.print(f"[yellow]{number}: disputed ({payments[number].disputes})[/]", highlight=False)
        wrong = sum(bool(problems) for problems in found.values())
        console.print(
            f"{len(found)} invoices compared with Stripe's by total and lines, {wrong} differ", highlight=False
        )
    if any(found.values()):
        raise typer.Exit(1)


@app.command()
def payments(
    numbers: Annotated[list[str] | None, typer.Argument(help="Numbers of invoices; without them, all.")] = None,
) -> None:
    """How the payment of invoices stood when Stripe was asked last."""
    with errors_for_people(), opened(BillingSettings()) as book:
        currencies = {row.number: row.currency for row in list_invoices(book) if row.number}
        numbers = numbers or sorted(currencies)
        found = payments_of(book, numbers)
        if unknown := [number for number in numbers if number not in currencies]:
            raise NotFoundError(f"no invoice is called {', '.join(map(repr, unknown))}; name the numbers of final ones")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("invoice", "payment", "paid", "remaining", "credited", "asked (UTC)"):
        table.add_column(name)
    for number in numbers:
        row = found.get(number)
        if row is None:
            table.add_row(number, "not pushed, or not asked yet")
            continue
        amounts = [minor(one, currencies[number]) for one in (row.paid_minor, row.remaining_minor, row.credited_minor)]
        state = row.status
        if row.attempts > 1:
            state += f", {row.attempts} tries"
        if row.disputes:
            state += f", [red]disputed: {escape(row.disputes)}[/]"
        table.add_row(number, state, *amounts, f"{row.checked_at:%m-%d %H:%M}")
    console.print(table)


@app.command()
def events(
    waiting: Annotated[bool, typer.Option("--waiting", help="Only those that are not handled yet.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most this many, newest first.")] = 50,
) -> None:
    """What Stripe told by webhook, each event once, and what came of it."""
    with errors_for_people(), opened(BillingSettings()) as book:
        rows = list_events(book, waiting=waiting, limit=limit)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("received (UTC)", "event", "kind", "what came of it"):
        table.add_column(name, overflow="fold")
    for row in rows:
        state = (row.outcome or "waits") + (f" ({row.tries} tries)" if row.tries > 1 else "")
        shown = state if row.handled_at else f"[yellow]{escape(state)}[/]"
        table.add_row(f"{row.received_at:%m-%d %H:%M:%S}", row.id, row.kind, shown)
    console.print(table)


@app.command("meter-events")
def meter_events(
    period: Annotated[
        str, typer.Option("--period", callback=month, help="The month of the usage, as YYYY-MM; it may be running.")
    ],
    meter: Annotated[str, typer.Option("--meter", help="The event_name of the meter in Stripe.")],
    count: Annotated[
        str, typer.Option("--count", help="What it counts: input, output, tokens or requests.")
    ] = "tokens",
    tenant: Annotated[str | None, typer.Option("--tenant", help="This tenant only.")] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="By the v2 stream, 100 events a request; else by v1, one each.")
    ] = False,
    settle: Annotated[
        int,
        typer.Option("--settle-minutes", min=0, help="Leave what was stored in the last minutes for the next time."),
    ] = SETTLE_MINUTES,
) -> None:
    """Send usage to a Stripe billing meter, one event each, and each once however often this is run.

    For accounts that let Stripe price usage; invoices by `taximeter invoice push` do not need it. Run it every few minutes, or
    once a day: it sends what came since the last time, late usage too, and goes on where it was cut off (noted under
    TAXIMETER_STATE_DIR, for each month, meter, count and tenant). Stripe takes usage of the last 35 days. Usage that is voided
    or amended before it was sent is not sent; after that it is cancelled there, which Stripe does for 24 hours. What it does not
    cancel stands too high: it is named, with exit status 1, and counted each time after.

    Example: taximeter stripe meter-events --period 2026-11 --meter llm_tokens --count tokens
    """
    match count:
        case "input" | "output" | "tokens" | "requests":
            counted: Count = count
        case _:
            raise typer.BadParameter("there are: input, output, tokens, requests", param_hint="--count")
    settings = BillingSettings()
    with errors_for_people(), book_and_usage(settings) as (book, usage):
        known_tenant(book, tenant)
        done = export_usage(
            usage,
            settings,
            period,
            meter,
            counted,
            datetime.now(UTC),
            tenant=tenant,
            stream=stream,
            settle_minutes=settle,
        )
    console.print(f"{done.sent} events of {period} sent to meter {escape(meter)}", highlight=False)
    if done.cancelled:
        console.print(f"{len(done.cancelled)} voided or amended events cancelled there", highlight=False)
    for one in done.refused:
        console.print(
            f"[red]{escape(one.event_id)} was voided or amended and stands too high by {one.value:,} {counted}:"
            f" {escape(one.reason)}[/]",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    if done.standing:
        whole = sum(one.value for one in done.standing)
        console.print(
            f"[yellow]{len(done.standing)} events stand too high by {whole:,} {counted} in all[/] (listed in {done.journal});"
            " Stripe's meters that sum take a negative value",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    if done.refused:
        raise typer.Exit(1)
