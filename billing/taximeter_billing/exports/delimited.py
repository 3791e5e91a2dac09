"""Comma-separated text that is the same bytes every time, and harmless in a spreadsheet. Pure."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal

Cell = str | int | Decimal | None


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Cell]]) -> str:
    """A head and rows, lines ended by CR LF (RFC 4180). None is an empty cell; a Decimal is written plainly, never with an E."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_written(row.get(name)) for name in columns])
    return text.getvalue()


def plain(amount: Decimal) -> str:
    """A Decimal without an exponent and without zeros that say nothing."""
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _written(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, Decimal):
        return plain(cell) or "0"
    if isinstance(cell, int):
        return str(cell)
    # A spreadsheet takes what begins so for a formula; names of tenants and features come from outside.
    return f"'{cell}" if cell[:1] in {"=", "+", "-", "@", "\t", "\r"} else cell
