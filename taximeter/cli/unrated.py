"""`taximeter unrated`: usage that has no price yet, and rating it once a card was published."""

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Annotated

import typer
from clickhouse_connect.driver.client import Client
from rich import box
from rich.console import Console
from rich.table import Table

from taximeter.cli.reconcile import errors_for_people, progress_line
from taximeter.mending.sending import Sender
from taximeter.mending.unrated import Group, LateOutcome, plan, rate_later
from taximeter_billing.errors import NotFoundError
from taximeter_billing.operations import require_log
from taximeter_billing.settings import BillingSettings
from taximeter_producers.control import ControlFollower
from taximeter_schemas.control_snapshot import ControlSnapshot
from taximeter_schemas.money import format_pico
from taximeter_sql import connect

app = typer.Typer(
    help="Unrated usage: counted, held off every invoice, and never free. Publish a price, then rate it.",
    no_args_is_help=True,
)

OfTenant = Annotated[str | None, typer.Option("--tenant", help="This tenant only.")]
OfModel = Annotated[str | None, typer.Option("--model", help="This model only.")]


@app.command("list")
def list_all(
    tenant: OfTenant = None,
    model: OfModel = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """What has no price, by tenant and model, and whether it has one by now."""
    with errors_for_people(), opened() as (_settings, client, snapshot):
        known(snapshot, tenant)
        groups = plan(client, snapshot, tenant, model)
    if as_json:
        print(json.dumps([_as_json(group) for group in groups], indent=2))
        return
    show_groups(Console(), groups)


@app.command()
def rate(
    tenant: OfTenant = None,
    model: OfModel = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be rated, by which card, and stop.")
    ] = False,
    wait: Annotated[float, typer.Option("--wait", min=0.0, help="Seconds to wait for the meter.")] = 60.0,
) -> None:
    """Rate what has a price by now, at the price that held at the event's own time.

    The meter writes each rating once, also when this is killed or run twice.
    Rollups, budgets and invoices have it from then on. A final invoice does
    not change: closing its month again tells that a correction is due.
    Exits 1 when something that was sent is not rated.

    Publish the price first: a new version of the tenant's rate card that is
    in force from before the usage (`taximeter apply`).
    """
    console = Console()
    with errors_for_people(), opened() as (settings, client, snapshot):
        known(snapshot, tenant)
        if dry_run:
            show_groups(console, plan(client, snapshot, tenant, model))
            return
        with progress_line() as progress:
            outcome = rate_later(
                client,
                Sender(settings.kafka_bootstrap_servers),
                settings.log_id,
                snapshot,
                tenant,
                model,
                wait_seconds=wait,
                progress=lambda sent: progress(f"{sent:,} events sent to the meter"),
            )
        left = sum(group.events for group in plan(client, snapshot, tenant, model) if not group.priced)
    _tell(console, outcome, left)
    if outcome.waiting or outcome.still_unrated:
        raise typer.Exit(1)


def show_groups(console: Console, groups: list[Group]) -> None:
    """Groups as a table: those that could be rated now first say by which card."""
    if not groups:
        console.print("everything has a price")
        return
    table = Table("tenant", "model", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("events", justify="right")
    for name in ("from (UTC)", "to", "now"):
        table.add_column(name)
    for group in groups:
        verdict = f"[green]a price: {group.verdict}[/]" if group.priced else f"[yellow]{group.verdict}[/]"
        first, last = (f"{moment:%Y-%m-%d %H:%M}" if moment else "-" for moment in (group.first, group.last))
        table.add_row(group.tenant, group.model, f"{group.events:,}", first, last, verdict)
    console.print(table)
    if any(group.priced for group in groups):
        console.print("`taximeter unrated rate` rates what has a price.", highlight=False)


def _tell(console: Console, outcome: LateOutcome, left: int) -> None:
    money = ", ".join(format_pico(amount, currency) for currency, amount in sorted(outcome.metered_pico.items()))
    console.print(f"rated: {outcome.rated:,} events{f' ({money})' if money else ''}", highlight=False)
    if outcome.rated_before:
        console.print(f"rated before: {outcome.rated_before:,}", highlight=False)
    if outcome.still_unrated:
        console.print(
            f"[yellow]the meter knows no price yet: {outcome.still_unrated:,}; run it again[/]", highlight=False
        )
    if outcome.waiting:
        console.print(
            f"[yellow]sent, and not stored yet: {outcome.waiting:,}; is the meter running?[/]", highlight=False
        )
    if left:
        console.print(f"without a price still: {left:,}; `taximeter unrated list` says why", highlight=False)


def _as_json(group: Group) -> dict[str, object]:
    return {
        "tenant": group.tenant,
        "model": group.model,
        "events": group.events,
        "first": group.first.isoformat() if group.first else None,
        "last": group.last.isoformat() if group.last else None,
        "priced": group.priced,
        "rate_card" if group.priced else "reason": group.verdict,
    }


def known(snapshot: ControlSnapshot, tenant: str | None) -> None:
    """What nobody declared has nothing that is unrated: its usage is rejected. Raises NotFoundError."""
    if tenant is not None and tenant not in snapshot.tenants:
        raise NotFoundError(f"no tenant is called {tenant!r}; see `taximeter rejected list --reason unknown_tenant`")


@contextmanager
def opened() -> Iterator[tuple[BillingSettings, Client, ControlSnapshot]]:
    """The warehouse, and what is declared now. Raises LogAwayError, ControlError."""
    settings = BillingSettings()
    with closing(connect(settings.clickhouse_url)) as client:
        require_log(settings)
        control = ControlFollower(settings.kafka_bootstrap_servers)
        try:
            control.start()
            yield settings, client, control.snapshot()
        finally:
            control.stop()
