"""`taximeter budget`: where budgets stand, and what was added to wallets."""

from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from taximeter.cli.billing_session import errors_for_people, known_tenant
from taximeter.cli.budget_states import read_states
from taximeter_billing.operations import opened, require_log
from taximeter_billing.settings import BillingSettings
from taximeter_billing.top_ups import list_top_ups
from taximeter_schemas.budgets import BudgetPosition
from taximeter_schemas.money import format_pico
from taximeter_schemas.periods import PeriodKind

app = typer.Typer(help="Budgets: where they stand, and the top-ups of wallets.", no_args_is_help=True)


@app.command("list")
def show_list(tenant: Annotated[str, typer.Option(help="Only of that tenant.")] = "") -> None:
    """List the budgets with what is spent, leased to gateways and left, as their keeper published it last."""
    settings = BillingSettings()
    with errors_for_people(), opened(settings) as book:
        known_tenant(book, tenant or None)
        with Console(stderr=True).status("reading where budgets stand"):
            require_log(settings)
            states = read_states(settings.kafka_bootstrap_servers)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for head in ("budget", "tenant", "period"):
        table.add_column(head, overflow="fold")
    for head in ("limit", "spent", "leased", "left"):
        table.add_column(head, justify="right", no_wrap=True)  # folded names, never a cut amount
    for name, state in sorted(states.items()):
        for position in state.positions if tenant in ("", name) else ():
            table.add_row(escape(position.budget.id), escape(name), *_cells(position))
    Console().print(table)


@app.command()
def topups(tenant: Annotated[str, typer.Option(help="Only of that tenant.")] = "") -> None:
    """List the top-ups of wallets, in the order in which they were recorded."""
    with errors_for_people(), opened(BillingSettings()) as book:
        known_tenant(book, tenant or None)
        entries = list_top_ups(book, tenant or None)
    table = Table("id", "at", "tenant", "wallet", "amount", "note", box=box.SIMPLE)
    for entry in entries:
        added = entry.top_up
        amount = format_pico(added.amount_pico, added.currency)
        at = f"{entry.at:%Y-%m-%d %H:%M:%S} UTC"
        table.add_row(escape(added.id), at, escape(added.tenant), escape(added.budget), amount, escape(added.note))
    Console().print(table)


def _cells(position: BudgetPosition) -> list[str]:
    budget = position.budget
    period = "prepaid" if budget.period is PeriodKind.LIFETIME else position.period
    amounts = (position.spent_pico, position.leased_pico, position.available_pico)
    bare = (format_pico(amount, budget.currency).removesuffix(f" {budget.currency}") for amount in amounts)
    return [period, format_pico(budget.limit_pico, budget.currency), *bare]
