"""`taximeter keys`: API keys of tenants. A secret is shown once, when the key is made."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from taximeter.cli.apply import actor
from taximeter_billing import operations
from taximeter_billing.errors import BillingError
from taximeter_billing.settings import BillingSettings
from taximeter_producers.errors import ControlError

app = typer.Typer(help="API keys of tenants.", no_args_is_help=True)


@app.command()
def create(tenant: Annotated[str, typer.Argument(help="The tenant that the key is for.")]) -> None:
    """Make a key. The secret is printed on standard output, now and never again."""
    with _told_errors():
        key = operations.create_key(BillingSettings(), tenant, actor())
    Console(stderr=True).print(f"[green]key {escape(key.id)}[/] for {escape(key.tenant)}; its secret is not kept:")
    typer.echo(key.secret)


@app.command("list")
def show() -> None:
    """List the keys, without their secrets."""
    with _told_errors():
        rows = operations.list_keys(BillingSettings())
    table = Table("key", "tenant", "begins with", "made", "state")
    for row in rows:
        state = "[red]revoked[/]" if row.disabled else "[green]active[/]"
        table.add_row(row.id, escape(row.tenant), row.hint, f"{row.created_at:%Y-%m-%d %H:%M} UTC", state)
    Console().print(table)


@app.command()
def revoke(key: Annotated[str, typer.Argument(help="The key's id (see `taximeter keys list`).")]) -> None:
    """Revoke a key; gateways refuse it within seconds."""
    with _told_errors():
        operations.revoke_key(BillingSettings(), key, actor())
    Console().print(f"key {escape(key)} is revoked")


@contextmanager
def _told_errors() -> Iterator[None]:
    console = Console(stderr=True)
    try:
        yield
    except BillingError as error:
        console.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except ControlError as error:
        console.print(f"[red]recorded, not yet published:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
