"""`taximeter explain`: the arithmetic of one line of an invoice, down to the events."""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from taximeter.cli.billing_session import book_and_usage, errors_for_people
from taximeter_billing.domain.storage import STORAGE
from taximeter_billing.domain.usage import UsageRow
from taximeter_billing.explaining import Explanation, explain_line
from taximeter_billing.settings import BillingSettings
from taximeter_schemas.money import currency_exponent, format_pico, pico_per_minor_unit


def command(
    invoice: Annotated[str, typer.Argument(help="An invoice's number, or TENANT/PERIOD.")],
    line: Annotated[int, typer.Argument(help="The line's number, from 1.")],
    events: Annotated[int, typer.Option(help="How many of its events to show.", min=0)] = 10,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the line with its receipt and events as JSON.")
    ] = False,
) -> None:
    """Show how one line of an invoice came about: quantity times price, tiers, savings, rounding, events."""
    with errors_for_people(), book_and_usage(BillingSettings()) as (book, reader):
        found = explain_line(book, reader, invoice, line, events)
    if as_json:
        shown = [_event(event) for event in found.events]
        print(json.dumps({"line": found.line, "inputs": found.inputs, "events": shown}, indent=2))
        return
    console = Console()
    for part in _parts(found):
        console.print(part)
    if not found.agrees and found.line["kind"] == "usage":
        console.print(
            f"[red]the warehouse now holds {found.events_all} events for this line[/]; run `taximeter verify {invoice}`"
        )
        raise typer.Exit(1)


def _parts(found: Explanation) -> Iterator[Table | Text]:
    line, currency = found.line, found.invoice.currency
    name = found.invoice.number or f"{found.invoice.tenant}/{found.invoice.period}"
    yield Text.from_markup(f"[bold]{name}, line {line['line']}: {line['feature']}, {line['model']}[/]")
    yield _components(line, currency) if line["kind"] == "usage" else _detail(line)
    for tier in line["receipt"].get("tiers", []):
        yield Text(
            f"tariff {tier['tariff']} ({tier['mode']}, {tier['meter']}): {tier['quantity']:,} units, pooled at "
            f"{tier['pooled_from']:,} to {tier['pooled_to']:,}: {format_pico(int(tier['list_pico']), currency)} becomes "
            f"{format_pico(int(tier['tiered_pico']), currency)}"
        )
    yield _sum(line, currency)
    if found.events:
        yield _events(found)
    receipt = line["receipt"]
    said = [f"events {receipt['event_set_hash']}"] if receipt.get("event_set_hash") else []
    said += [f"card {line['rate_card']} {receipt['rate_card_sha256'][:16]}"] if line["rate_card"] else []
    said += [f"policy {receipt['cache_policy']}"] if "cache_policy" in receipt else []
    said += [f"agreed {name}" for name in found.inputs.get("agreements", [])]
    yield Text("; ".join([*said, f"inputs {receipt['inputs_sha256']}"]), style="dim")


def _components(line: Mapping[str, Any], currency: str) -> Table:
    parts = line["receipt"]["components"]
    scopes = {part["price"] for part in parts}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left", title_style="dim")
    if len(scopes) > 1:
        table.add_column("price of", overflow="fold")
    else:
        table.title = Text(f"price of {next(iter(scopes), '-')}")
    table.add_column("class", overflow="fold")
    for head in ("quantity", f"x pico-{currency}", f"= {currency}", "without cache"):
        table.add_column(head, justify="right", no_wrap=True)  # what an auditor adds up is never cut
    for part in parts:
        amounts = [_bare(int(part[name]), currency) for name in ("amount_pico", "list_pico")]
        scope = [part["price"]] if len(scopes) > 1 else []
        table.add_row(*scope, part["class"], f"{part['quantity']:,}", f"{int(part['price_pico']):,}", *amounts)
    return table


def _detail(line: Mapping[str, Any]) -> Text:
    detail = line["receipt"].get("detail", {})
    said = [f"{name}: {value}" for name, value in detail.items()]
    if line["kind"] == STORAGE:
        arithmetic = f"{detail['token_seconds']} token-seconds x {detail['price_pico_token_hour']} / 3600"
        said.append(f"{arithmetic} = {int(line['net_pico']):,} pico, rounded once over the cache pool")
    return Text("\n".join(said))


def _sum(line: Mapping[str, Any], currency: str) -> Text:
    amount = int(line["amount_minor"])
    exact = int(line["net_pico"])
    off = exact - amount * pico_per_minor_unit(currency)
    said = f"= net {format_pico(exact, currency)}"
    if line["kind"] == "usage":
        parts = {name: format_pico(int(line[f"{name}_pico"]), currency) for name in ("list", "tier", "savings")}
        said = f"list {parts['list']} + tiers {parts['tier']} - cache savings {parts['savings']} {said}"
    minor = Decimal(amount).scaleb(-currency_exponent(currency))
    return Text(
        f"{said}; on the invoice {minor} {currency} (its share of the total, which is rounded once: {off} pico-units off)"
    )


def _events(found: Explanation) -> Table:
    rest = found.events_all - len(found.events)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"{found.events_all:,} events", title_justify="left")
    table.caption = f"and {rest:,} more" if rest else None
    counts = {
        "input": [row.uncached_input for row in found.events],
        "cached": [sum(row.reads.values()) for row in found.events],
        "written": [sum(row.writes.values()) for row in found.events],
        "output": [row.output for row in found.events],
    }
    shown = {head: column for head, column in counts.items() if any(column)}
    table.add_column("event, ended (UTC)", overflow="fold", ratio=1)
    for head in (*shown, "list", "metered"):
        table.add_column(head, justify="right", no_wrap=True)
    for place, row in enumerate(found.events):
        amounts = (_bare(pico, found.invoice.currency) for pico in (row.list_pico, row.metered_pico))
        of_row = (f"{column[place]:,}" for column in shown.values())
        table.add_row(Text(f"{row.event_id}\n{_time(row)}"), *of_row, *amounts)
    return table


def _bare(amount_pico: int, currency: str) -> str:
    """An amount without its currency, for a table that names it once."""
    return format_pico(amount_pico, currency).removesuffix(f" {currency}")


def _time(row: UsageRow) -> str:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=row.time_us)
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def _event(row: UsageRow) -> dict[str, Any]:
    named = ("source", "event_id", "operation", "service_tier", "uncached_input", "output", "reasoning")
    said = {name: getattr(row, name) for name in named}
    costs = {"list_pico": str(row.list_pico), "metered_pico": str(row.metered_pico)}
    return {"time": _time(row), **said, "cache_read": row.reads, "cache_write": row.writes, **costs}
