"""`taximeter prices`: public price lists as rate cards to declare."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.markup import escape

from taximeter.cli.billing_session import errors_for_people
from taximeter_billing.declarations.importing import Imported, from_genai_prices, from_litellm

app = typer.Typer(help="Import public price lists as rate cards.", no_args_is_help=True)

CardId = Annotated[str, typer.Option("--id", help="The card's id.")]
Version = Annotated[int, typer.Option("--version", help="The card's version.", min=1)]
From = Annotated[datetime, typer.Option("--from", help="When the prices begin to hold (UTC).")]
Models = Annotated[list[str] | None, typer.Option("--model", help="Only models like this (gpt-5*); may be repeated.")]
Quantize = Annotated[bool, typer.Option("--quantize", help="Round what is finer than 1e-12 a token half up.")]


@app.command()
def litellm(
    file: Annotated[
        Path, typer.Argument(help="LiteLLM's model_prices_and_context_window.json.", dir_okay=False, exists=True)
    ],
    start: From,
    card: CardId = "litellm",
    version: Version = 1,
    model: Models = None,
    quantize: Quantize = False,
) -> None:
    """Print a rate card, as a declarations file holds it, with the hash of the file that it came from.

    What was not taken, and why, is told on standard error.

    Example: taximeter prices litellm model_prices_and_context_window.json --from 2026-12-01 --model 'gpt-5*' > prices.yaml,
    then taximeter apply prices.yaml
    """
    with errors_for_people():
        found = from_litellm(
            file.read_bytes(), card, version, start.replace(tzinfo=UTC), model or (), quantize=quantize
        )
    _print(found)


@app.command()
def genai(
    provider: Annotated[list[str], typer.Option("--provider", help="A provider (openai, anthropic); may be repeated.")],
    start: From,
    card: CardId = "genai",
    version: Version = 1,
    model: Models = None,
    quantize: Quantize = False,
) -> None:
    """The same from the installed genai-prices package (the extra `prices`).

    Example: taximeter prices genai --provider openai --from 2026-12-01 > prices.yaml
    """
    with errors_for_people():
        try:
            found = from_genai_prices(
                card, version, start.replace(tzinfo=UTC), provider, model or (), quantize=quantize
            )
        except ModuleNotFoundError:
            Console(stderr=True).print("[red]genai-prices is not installed:[/] pip install 'taximeter\\[prices]'")
            raise typer.Exit(2) from None
    _print(found)


def _print(found: Imported) -> None:
    typer.echo(yaml.safe_dump({"rate_cards": [found.card]}, sort_keys=False, allow_unicode=True), nl=False)
    notes = Console(stderr=True)
    for name, reason in found.refused.items():
        notes.print(f"[yellow]not taken: {escape(name)}: {escape(reason)}[/]", highlight=False, soft_wrap=True)
    for name, prices in found.ignored.items():
        notes.print(f"[dim]no place on a card: {escape(name)}: {escape(', '.join(prices))}[/]", soft_wrap=True)
    notes.print(
        f"{len({price['model'] for price in found.card['prices']}):,} models taken, {len(found.refused):,} not, "
        f"{len(found.ignored):,} with prices that have no place on a card",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
