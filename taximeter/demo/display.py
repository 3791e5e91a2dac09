"""What the demo shows while it runs. Figures in, a table out."""

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from taximeter.demo.scene import TENANTS
from taximeter.workload.client import Outcome
from taximeter_schemas.budgets import BudgetPosition
from taximeter_schemas.money import format_pico

_BAR_CELLS = 16
_ALERTS_SHOWN = 6


def picture(
    phase: str,
    outcome: Outcome,
    positions: Mapping[str, BudgetPosition | None],
    alerts: Mapping[str, Mapping[str, object]],
) -> RenderableType:
    """The state of the demo as one picture."""
    table = Table("tenant", box=None, pad_edge=False)
    for name in ("served", "refused"):
        table.add_column(name, justify="right")
    table.add_column("spend against budget")
    for tenant in TENANTS:
        served, refused = outcome.of(tenant, 200), outcome.of(tenant, 402)
        told = Text(f"{refused:,}", style="bold red" if refused else "dim")
        table.add_row(tenant, f"{served:,}", told, _bar(positions.get(tenant)))
    heard = [Text(f"  {_message(alert)}", style="yellow") for alert in list(alerts.values())[-_ALERTS_SHOWN:]]
    title = Text("alerts at the webhook receiver", style="bold" if heard else "dim")
    return Panel(Group(table, Text(""), title, *heard), title=f"[bold]{phase}[/]", title_align="left")


def _bar(position: BudgetPosition | None) -> Text:
    if position is None:
        return Text("no budget", style="dim")
    budget = position.budget
    part = min(1.0, position.spent_pico / budget.limit_pico) if budget.limit_pico else 1.0
    cells = round(part * _BAR_CELLS)
    colour = "red" if part >= 0.999 else "yellow" if part >= 0.8 else "green"
    bar = Text("█" * cells, style=colour)
    bar.append("░" * (_BAR_CELLS - cells), style="dim")
    spent = format_pico(position.spent_pico, budget.currency, 4).removesuffix(f" {budget.currency}")
    limit = format_pico(budget.limit_pico, budget.currency, 2)
    bar.append(f" {spent} of {limit} a {budget.period}", style="default")
    return bar


def _message(alert: Mapping[str, object]) -> str:
    data = alert.get("data")
    text = data.get("message") if isinstance(data, Mapping) else None
    return f"{alert.get('type', 'alert')}: {text or ''}"
