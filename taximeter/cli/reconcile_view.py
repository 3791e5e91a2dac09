"""A reconciliation's report for the terminal."""

from rich.table import Table
from rich.text import Text

from taximeter.reconcile import Report

_FINDINGS_SHOWN = 12


def report_tables(report: Report) -> list[Table | Text]:
    """Counts by tenant, then each law with whether it holds, then what does not agree."""
    counts = Table("tenant", title="produced = rated + unrated + duplicate + rejected", title_justify="left")
    for name in ("produced", "rated", "unrated", "duplicate", "rejected"):
        counts.add_column(name, justify="right")
    mended = any(row.rated_later or row.replayed for row in report.tenants)
    if mended:
        counts.add_column("of these rated later", justify="right")
        counts.add_column("replayed", justify="right")
    for row in report.tenants:
        numbers = [row.produced, row.rated, row.unrated, row.duplicate, row.rejected]
        numbers += [row.rated_later, row.replayed] if mended else []
        counts.add_row(row.tenant, *(f"{number:,}" for number in numbers))
    laws = Table("law", "compared", "holds")
    parts: list[Table | Text] = [counts, laws]
    for check in report.checks:
        verdict = Text("yes", style="green") if check.holds else Text(f"NO ({len(check.findings)})", style="bold red")
        laws.add_row(check.law, check.compared, verdict)
        for found in check.findings[:_FINDINGS_SHOWN]:
            parts.append(Text(f"  {check.law}: {found}", style="red"))
        if (more := len(check.findings) - _FINDINGS_SHOWN) > 0:
            parts.append(Text(f"  {check.law}: and {more} more; --json lists all", style="red"))
    parts += [Text(f"  repaired: {cell}", style="green") for cell in report.repaired[:_FINDINGS_SHOWN]]
    if (more := len(report.repaired) - _FINDINGS_SHOWN) > 0:
        parts.append(Text(f"  repaired: and {more} more cells", style="green"))
    for cell in report.unsettled[:_FINDINGS_SHOWN]:
        parts.append(Text(f"  not repaired, still being written: {cell}; run it again later", style="yellow"))
    verdict = (
        Text("Every law holds.", style="bold green")
        if report.clean
        else Text("Something does not agree.", style="bold red")
    )
    return [*parts, verdict]
