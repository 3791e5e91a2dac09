"""`taximeter demo`: the whole pipeline, from a request to a proven invoice."""

import shutil
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from taximeter.cli.up import write_env_file
from taximeter.demo.run import run_demo
from taximeter.embedded.stack import Stack, StackError


def command(
    data: Annotated[Path, typer.Option(help="The folder for the demo's data; made anew.")] = Path("data/demo"),
    scale: Annotated[float, typer.Option(min=0.05, max=20.0, help="How much traffic, against the usual amount.")] = 1.0,
) -> None:
    """Start the embedded stack, send a day and a night of traffic, close the month, and prove the invoices."""
    console = Console()
    began = time.monotonic()
    if data.exists():
        shutil.rmtree(data)
    console.print(
        "Taximeter: from a tagged request to a proven invoice, on this machine, without Docker or an account."
    )
    try:
        with console.status("starting the stack") as status:
            stack = Stack(data, random_ports=True, report=lambda text: status.update(f"starting the stack: {text}"))
            stack.start()
        try:
            write_env_file(stack)
            clean = run_demo(stack, console, scale)
        finally:
            with console.status("stopping the stack"):
                stack.stop()
    except StackError as error:
        console.print(f"[red]{escape(str(error))}[/]", highlight=False)
        raise typer.Exit(1) from None
    console.rule("[bold]Look further")
    console.print(
        f"done in {time.monotonic() - began:.0f} s; the data stay in {data}\n"
        "  make up                        start the stack and keep it running (then see the README)\n"
        "  taximeter --help               every command\n"
        "  docs/architecture.md           how it fits together\n"
        f"  {data}/logs                 what each service said",
        highlight=False,
    )
    if not clean:
        raise typer.Exit(1)
