"""`taximeter apply`: shows what a declarations file would change, asks, and does it."""

import getpass
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from taximeter_billing.declarations import Change, Plan
from taximeter_billing.errors import BillingError
from taximeter_billing.operations import apply_file, plan_of_file
from taximeter_billing.settings import BillingSettings
from taximeter_producers.errors import ControlError

_SIGNS = {"create": "[green]+", "change": "[yellow]~", "delete": "[red]-"}
_SECRET_FIELDS = {"secret"}


def command(
    file: Annotated[Path, typer.Argument(help="The declarations, in YAML (see docs/examples/taximeter.yaml).")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Apply without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and change nothing.")] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete what the file does not hold (published versions stay).")
    ] = False,
) -> None:
    """Declare tenants, budgets, rate cards, cache pools and alert endpoints: plan first, then apply."""
    console = Console()
    settings = BillingSettings()
    try:
        plan = plan_of_file(settings, file, prune=prune)
        show_plan(console, plan)
        if dry_run:
            return
        if not plan.empty and not yes:
            typer.confirm("Apply these changes?", abort=True)
        # Also with nothing to change: what an earlier run recorded and could not publish goes out now.
        done = apply_file(settings, file, actor(), prune=prune)
    except BillingError as error:
        Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except ControlError as error:
        Console(stderr=True).print(f"[red]recorded, not yet published:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(1) from None
    if not done.empty:
        console.print(f"[green]applied[/] {len(done.changes)} changes")


def apply_to_stack(environment: Mapping[str, str], file: Path) -> Plan:
    """Apply a file to the book and log that a stack's environment names. Raises BillingError, ControlError."""
    return apply_file(settings_from(environment), file, actor())


def settings_from(environment: Mapping[str, str]) -> BillingSettings:
    """Billing's settings out of an environment that is not this process's own."""
    prefix = "TAXIMETER_"
    given = {name.removeprefix(prefix).lower(): value for name, value in environment.items() if name.startswith(prefix)}
    try:
        return BillingSettings.model_validate(given)
    except ValidationError as error:
        raise BillingError(f"the stack's settings are not valid: {error}") from None


def actor() -> str:
    """Who runs this, for the audit log."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # a container's user may have no name
        return "cli"


def show_plan(console: Console, plan: Plan) -> None:
    """Print the plan, a line for each thing and for each field that changes."""
    for change in plan.changes:
        console.print(f"{_SIGNS[change.action]} {change.kind} {escape(change.key)}[/]", highlight=False)
        for line in _field_lines(change):
            console.print(f"    {escape(line)}", style="dim", highlight=False, soft_wrap=True)
    if plan.empty:
        console.print(f"no changes ({plan.unchanged} things as declared)")
        return
    counts = {action: sum(change.action == action for change in plan.changes) for action in _SIGNS}
    summary = ", ".join(f"{count} to {action}" for action, count in counts.items() if count)
    console.print(f"[bold]Plan:[/] {summary}, {plan.unchanged} unchanged")


def _field_lines(change: Change) -> list[str]:
    if change.action != "change":
        return []
    before, after = change.before or {}, change.after or {}
    return [f"{name}: {_shown(name, before.get(name))} -> {_shown(name, after.get(name))}" for name in change.fields]


def _shown(name: str, value: Any) -> str:
    return "(secret)" if name in _SECRET_FIELDS else repr(value)
