"""`taximeter topup`: adds money to a tenant's prepaid wallet, once for each id."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from taximeter.cli.apply import actor
from taximeter_billing.errors import BillingError
from taximeter_billing.operations import opened, publisher, require_log
from taximeter_billing.settings import BillingSettings
from taximeter_billing.top_ups import Wanted, top_up
from taximeter_producers.errors import ControlError
from taximeter_schemas.errors import AmountError
from taximeter_schemas.money import format_pico, to_pico


def command(
    tenant: Annotated[str, typer.Argument(help="Whose wallet.")],
    amount: Annotated[str, typer.Argument(help="How much, as a decimal: 25.00. Write -- before a negative one.")],
    id: Annotated[str, typer.Option("--id", help="Names this top-up: the same id twice adds once.")],
    currency: Annotated[str, typer.Option(help="The wallet's currency.")] = "USD",
    budget: Annotated[str | None, typer.Option(help="Which wallet, where the tenant has several.")] = None,
    note: Annotated[str, typer.Option(help="Why, for the list.")] = "",
) -> None:
    """Add money to a prepaid wallet (a budget with `period: lifetime`). Gateways know within seconds."""
    errors = Console(stderr=True)
    settings = BillingSettings()
    try:
        wanted = Wanted(id, tenant, to_pico(amount), currency, budget, note)
        with opened(settings) as book:
            require_log(settings)
            done = top_up(book, wanted, actor(), datetime.now(UTC), publisher(settings))
    except (BillingError, AmountError) as error:
        errors.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except ControlError as error:
        errors.print(f"[red]recorded, not yet published:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    what = "added" if done.is_new else "was added before, nothing changed"
    added, limit = (format_pico(pico, currency) for pico in (done.top_up.amount_pico, done.limit_pico))
    Console().print(
        f"{escape(id)}: {added} {what}; wallet {escape(done.top_up.budget)} has been given {limit}", soft_wrap=True
    )
