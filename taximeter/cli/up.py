"""`taximeter up`: the embedded stack, until Ctrl-C."""

import json
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from taximeter.embedded.broker import BrokerError
from taximeter.embedded.services import SERVICES
from taximeter.embedded.stack import PORT_OFFSET_MAX, PortsTakenError, Stack, StackError


def command(
    data: Annotated[Path, typer.Option(help="The folder that holds all data of the stack.")] = Path("data"),
    declarations: Annotated[
        Path | None, typer.Option("--apply", help="Apply this YAML file once the stack is up.")
    ] = None,
    port_offset: Annotated[
        int,
        typer.Option(
            min=0,
            max=PORT_OFFSET_MAX,
            envvar="TAXIMETER_PORT_OFFSET",
            help="Added to every port, where the usual ones are taken: 1000 puts the gateway on 9080 instead of 8080.",
        ),
    ] = 0,
) -> None:
    """Start the embedded stack (no Docker, no account) and keep it running; Ctrl-C stops it cleanly."""
    console = Console()
    stack = Stack(data, port_offset=port_offset, report=lambda text: console.print(f"[dim]{text}[/]"))
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    try:
        with stack:
            write_env_file(stack)
            if declarations is not None:
                apply_declarations(stack, declarations)
            console.print(addresses_table(stack))
            console.print(f"Settings for other terminals: [bold]source {stack.data_dir / 'env.sh'}[/]   Stop: Ctrl-C")
            while not stopping.wait(1.0):
                stack.supervise()
            console.print("[dim]stopping[/]")
    except PortsTakenError as error:
        other = f"taximeter up --port-offset {port_offset + 1000} --data {data}-2"
        told = f"{error}. Stop what listens there (another `taximeter up`?), or take others: {other}"
        Console(stderr=True).print(f"[red]error:[/] {escape(told)}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except (StackError, BrokerError) as error:
        Console(stderr=True).print(f"[red]{escape(str(error))}[/]", highlight=False)
        raise typer.Exit(1) from None


def addresses_table(stack: Stack) -> Table:
    """Where everything listens, for people."""
    table = Table("part", "address", "what it is", title="Taximeter is up", title_justify="left")
    table.add_row("Kafka", stack.addresses.kafka, "the log (in memory)" if stack.kafka is None else "the log")
    table.add_row(
        "ClickHouse",
        stack.addresses.clickhouse_url.rsplit("/", 1)[0].replace("default:@", ""),
        "the warehouse: SQL over HTTP",
    )
    table.add_row("Stripe double", stack.addresses.stripe_url, "payments, without money")
    for service in SERVICES:
        table.add_row(service.name, stack.addresses.urls[service.name], service.describes)
    return table


def write_env_file(stack: Stack) -> None:
    """Write data/env.sh, which points the other commands at this stack."""
    path = stack.data_dir / "env.sh"
    path.touch(mode=0o600)
    path.write_text(
        "".join(f"export {name}={json.dumps(value)}\n" for name, value in sorted(stack.service_environment.items()))
    )


def apply_declarations(stack: Stack, declarations: Path) -> None:
    """Apply a declarations file to the stack's billing book."""
    from taximeter.cli.apply import apply_to_stack

    apply_to_stack(stack.service_environment, declarations)
