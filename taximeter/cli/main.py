"""The `taximeter` command. One file a command group; a group whose extra is not installed says how to get it."""

import importlib
import sys
from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console

from taximeter.embedded.services import BY_NAME

app = typer.Typer(
    name="taximeter",
    help="Metering and billing for multi-tenant LLM inference: exact usage, held budgets, provable invoices.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

# Command group (module of taximeter.cli) and the extra that it needs.
_COMMANDS = {
    "up": "embedded",
    "demo": "embedded",
    "replay": "embedded",
    "reconcile": "billing",
    "apply": "billing",
    "savings": "billing",
    "what-if": "billing",
    "explain": "billing",
    "export": "billing",
    "verify": "billing",
    "margin": "billing",
    "topup": "billing",
    "trace": "billing",
}
_GROUPS = {
    "keys": "billing",
    "invoice": "billing",
    "stripe": "billing",
    "prices": "billing",
    "parked": "billing",
    "unrated": "billing",
    "rejected": "billing",
    "alerts": "billing",
    "budget": "billing",
}

console = Console(stderr=True)


@app.command()
def run(service: Annotated[str, typer.Argument(help="One of: " + ", ".join(sorted(BY_NAME)))]) -> None:
    """Run one service in this process, configured by TAXIMETER_... variables (see docs/reference/settings.md)."""
    entry = BY_NAME.get(service)
    if entry is None:
        console.print(f"[red]no service is called {service!r}[/]; there are: {', '.join(sorted(BY_NAME))}")
        raise typer.Exit(2)
    importlib.import_module(f"{entry.module}.__main__").main()


def _register() -> None:
    """Add every command whose extra is installed; the others tell what to install."""
    for name, extra in {**_COMMANDS, **_GROUPS}.items():
        try:
            module = importlib.import_module(f"taximeter.cli.{name.replace('-', '_')}")
        except ModuleNotFoundError as missing:
            if (missing.name or "").startswith("taximeter.cli"):
                raise
            app.command(name, help=f"(needs: pip install 'taximeter\\[{extra}]')")(
                _needs(extra, missing.name or "a module")
            )
            continue
        if name in _GROUPS:
            app.add_typer(module.app, name=name)
        else:
            app.command(name)(module.command)


def _needs(extra: str, missing: str) -> Callable[[], None]:
    def tell() -> None:
        console.print(f"[red]{missing} is not installed.[/] This command needs: pip install 'taximeter\\[{extra}]'")
        raise typer.Exit(2)

    return tell


_register()


def run_cli() -> None:
    """The entry point of the console script."""
    sys.exit(app())
