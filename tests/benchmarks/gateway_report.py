"""Tables of a comparison: as markdown on standard output, and in the page that keeps them, between two marks."""

import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.report import machine

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks-gateway.md"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table; all columns but the first are aligned to the right."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(values: Sequence[float], digits: int = 0) -> str:
    """The median, and the least and greatest of the rounds: "3,012 (2,950 to 3,100)"."""
    if not values:
        return ""
    middle = f"{statistics.median(values):,.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the values do not exceed; 0 where there is none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def keep(part: str, text: str) -> None:
    """Print it, and put it into the page in place of what stood between the part's marks."""
    print(text)
    begin, end = f"<!-- {part} begins -->", f"<!-- {part} ends -->"
    page = PAGE.read_text()
    kept = f"{begin}\nMeasured on {machine()}.\n\n{text}\n{end}"
    PAGE.write_text(re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: kept, page, flags=re.DOTALL))
