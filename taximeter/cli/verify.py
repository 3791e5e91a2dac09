"""`taximeter verify`: an invoice derived again from raw events, and its bytes compared."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from taximeter.cli.billing_session import book_and_usage, errors_for_people
from taximeter_billing.settings import BillingSettings
from taximeter_billing.verifying import verify_invoice


def command(
    invoice: Annotated[str, typer.Argument(help="An invoice's number, or TENANT/PERIOD.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Derive an invoice again from the raw events and compare the bytes. Exits 1 when they differ."""
    with errors_for_people(), book_and_usage(BillingSettings()) as (book, reader):
        found = verify_invoice(book, reader, invoice)
    if as_json:
        said = {"proven": found.proven, "events": found.events, "differences": found.differences}
        hashes = {"document_sha256": found.invoice.document_sha256, "derived_sha256": found.derived_sha256}
        print(json.dumps(said | hashes, indent=2))
    else:
        console = Console()
        name = found.invoice.number or f"{found.invoice.tenant}/{found.invoice.period}"
        if found.proven:
            console.print(
                f"[green]proven[/] {name}: {found.events:,} events give the very bytes, sha256 {found.derived_sha256[:16]}",
                highlight=False,
            )
        for difference in found.differences:
            console.print(f"[red]differs[/] {name}: {escape(difference)}", highlight=False, soft_wrap=True)
    if not found.proven:
        raise typer.Exit(1)
