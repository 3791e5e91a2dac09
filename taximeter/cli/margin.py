"""`taximeter margin`: what a month earned beside what it cost."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from taximeter.cli.billing_session import book_and_usage, errors_for_people, known_tenant
from taximeter.cli.months import month
from taximeter_billing.alerting import alert_negative_margins
from taximeter_billing.domain.margin import By, Margin, summed
from taximeter_billing.margins import margins_of_month
from taximeter_billing.operations import require_log
from taximeter_billing.settings import BillingSettings
from taximeter_schemas.money import format_pico

_PLACES = 4


def command(
    period: Annotated[str, typer.Option("--period", callback=month, help="The month, as YYYY-MM; it may be running.")],
    by: Annotated[str, typer.Option(help="tenant, feature or model.")] = "tenant",
    tenant: Annotated[str | None, typer.Option("--tenant", help="This tenant only.")] = None,
    alert: Annotated[
        bool,
        typer.Option("--alert", help="Tell the operator's alert endpoints where it is negative, once each a month."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Revenue, cost by the declared cost cards, and margin. Exits 1 when one is negative."""
    grouping = _grouping(by)
    settings = BillingSettings()
    with errors_for_people(), book_and_usage(settings) as (book, reader):
        known_tenant(book, tenant)
        found = margins_of_month(book, reader, period, tenant)
        if alert and found.negative:
            require_log(settings)
            alert_negative_margins(settings.kafka_bootstrap_servers, period, found.negative, datetime.now(UTC))
    sums = summed(found.margins, grouping)
    if as_json:
        print(
            json.dumps({"margins": [_as_json(name, one) for (name, _), one in sums.items()], "blocked": found.blocked})
        )
    else:
        console = Console()
        console.print(_table(grouping, sums))
        for name, reason in found.blocked.items():
            console.print(f"[yellow]cannot be said: {name}: {escape(reason)}[/]", highlight=False, soft_wrap=True)
    if any(one.negative for one in sums.values()):
        raise typer.Exit(1)


def _grouping(by: str) -> By:
    match by:
        case "tenant" | "feature" | "model":
            return by
        case _:
            raise typer.BadParameter("there are: tenant, feature, model")


def _table(by: str, sums: dict[tuple[str, str], Margin]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(by)
    for head in ("revenue", "cost", "margin", "in %", "events", "uncosted"):
        table.add_column(head, justify="right")
    for (name, currency), one in sums.items():
        amounts = [format_pico(pico, currency, _PLACES) for pico in (one.revenue_pico, one.cost_pico, one.margin_pico)]
        percent = f"{Decimal(one.margin_pico) * 100 / one.revenue_pico:.1f}" if one.revenue_pico else "-"
        counts = (f"{one.events:,}", f"{one.uncosted:,}" if one.uncosted else "")
        table.add_row(
            name or "(minimums, reservations)", *amounts, percent, *counts, style="red" if one.negative else ""
        )
    return table


def _as_json(name: str, one: Margin) -> dict[str, object]:
    picos = {"revenue_pico": one.revenue_pico, "cost_pico": one.cost_pico, "margin_pico": one.margin_pico}
    counts = {"events": one.events, "uncosted": one.uncosted}
    return {"name": name, "currency": one.currency, **{key: str(value) for key, value in picos.items()}, **counts}
