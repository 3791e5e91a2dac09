"""What commands about billing share: the book and the warehouse of the settings, and errors as one line for people."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape
from sqlalchemy import Engine

from taximeter_billing.errors import BillingError
from taximeter_billing.operations import opened
from taximeter_billing.settings import BillingSettings
from taximeter_billing.warehouse import UsageReader
from taximeter_schemas.errors import SchemaError
from taximeter_sql import WarehouseError, connect


@contextmanager
def book_and_usage(settings: BillingSettings) -> Iterator[tuple[Engine, UsageReader]]:
    """The book and the usage of these settings, closed at the end."""
    with opened(settings) as book:
        client = connect(settings.clickhouse_url)
        try:
            yield book, UsageReader(client)
        finally:
            client.close()


@contextmanager
def errors_for_people() -> Iterator[None]:
    """Expected errors are one line and exit status 2; anything else crashes loudly."""
    try:
        yield
    except (BillingError, SchemaError, WarehouseError) as error:
        Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
