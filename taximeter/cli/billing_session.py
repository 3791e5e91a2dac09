"""What commands about billing share: the book and the warehouse of the settings, and errors as one line for people."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from taximeter_billing.declarations.applying import current
from taximeter_billing.errors import BillingError, NotFoundError
from taximeter_billing.operations import opened
from taximeter_billing.settings import BillingSettings
from taximeter_billing.warehouse import UsageReader
from taximeter_schemas.control import ControlKind
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


def known_tenant(book: Engine, tenant: str | None) -> None:
    """A name that nobody declared would find nothing, and nothing looks like good news. Raises NotFoundError."""
    with Session(book) as session:
        if tenant is not None and (ControlKind.TENANT, tenant) not in current(session):
            raise NotFoundError(f"no tenant is called {tenant!r}")


@contextmanager
def errors_for_people() -> Iterator[None]:
    """Expected errors are one line and exit status 2; anything else crashes loudly."""
    try:
        yield
    except (BillingError, SchemaError, WarehouseError) as error:
        Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
