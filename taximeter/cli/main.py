"""The `taximeter` command. One file a command group, imported when it is asked for; a group whose extra is not installed says how
to get it."""

import importlib
import logging
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from taximeter.cli.told_errors import told
from taximeter.embedded.services import BY_NAME

# Command (module of taximeter.cli) and the extra that it needs, in the order of --help.
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


class Commands(TyperGroup):
    """Imports a command's file when it is called, for each brings its service's packages along; tells errors in one line."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All commands, installed or not."""
        return [*super().list_commands(ctx), *_COMMANDS, *_GROUPS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, None when there is none."""
        if cmd_name in _COMMANDS or cmd_name in _GROUPS:
            return _imported(cmd_name)
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: Any) -> Any:
        """Run it. What a person can mend is told, with exit status 2; anything else crashes loudly."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            line = told(error)
            if line is None:
                raise
            console.print(f"[red]error:[/] {escape(line)}", highlight=False, soft_wrap=True)
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=Commands,
    name="taximeter",
    help="Metering and billing for multi-tenant LLM inference: exact usage, held budgets, provable invoices.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


@app.callback()
def _several() -> None:
    # With one registered command alone, typer would make it the program.
    # Clients log what they raise, librdkafka each attempt; here the error is told, once.
    for client in ("clickhouse_connect", "taximeter_producers"):
        logging.getLogger(client).addHandler(logging.NullHandler())


@app.command()
def run(service: Annotated[str, typer.Argument(help="One of: " + ", ".join(sorted(BY_NAME)))]) -> None:
    """Run one service in this process, configured by TAXIMETER_... variables (see docs/reference/settings.md)."""
    entry = BY_NAME.get(service)
    if entry is None:
        console.print(f"[red]no service is called {service!r}[/]; there are: {', '.join(sorted(BY_NAME))}")
        raise typer.Exit(2)
    importlib.import_module(f"{entry.module}.__main__").main()


def _imported(name: str) -> Any:
    """A command or a group of them. Where its extra is missing, a command that says so."""
    extra = {**_COMMANDS, **_GROUPS}[name]
    alone = typer.Typer(add_completion=False)
    try:
        module = importlib.import_module(f"taximeter.cli.{name.replace('-', '_')}")
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("taximeter.cli"):
            raise
        lacks = _needs(extra, missing.name or "a module")
        settings = {"allow_extra_args": True, "ignore_unknown_options": True}
        alone.command(name, help=f"(needs: pip install 'taximeter\\[{extra}]')", context_settings=settings)(lacks)
        return typer.main.get_command(alone)
    if name in _GROUPS:
        module.app.info.name = name
        return typer.main.get_group(module.app)
    alone.command(name)(module.command)
    return typer.main.get_command(alone)


def _needs(extra: str, missing: str) -> Callable[[], None]:
    def tell() -> None:
        console.print(f"[red]{missing} is not installed.[/] This command needs: pip install 'taximeter\\[{extra}]'")
        raise typer.Exit(2)

    return tell


def run_cli() -> None:
    """The entry point of the console script."""
    sys.exit(app())
