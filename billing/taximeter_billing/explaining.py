"""Shows how one line of an invoice came about, down to the events."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Engine

from taximeter_billing.book import InvoiceRow
from taximeter_billing.domain.usage import UsageRow
from taximeter_billing.errors import NotFoundError
from taximeter_billing.lifecycle import find_invoice
from taximeter_billing.warehouse import ANY_TIME, TenantSpan, UsageReader


@dataclass(frozen=True, slots=True)
class Explanation:
    """A line with its receipt, and the events it was made from: the first of them, and what all of them cost together."""

    invoice: InvoiceRow
    line: Mapping[str, Any]
    inputs: Mapping[str, Any]
    events: list[UsageRow]
    events_all: int
    list_pico: int
    metered_pico: int

    @property
    def agrees(self) -> bool:
        """Whether the events add up to the line."""
        return self.events_all == self.line["events"] and self.list_pico == int(self.line["list_pico"])


def explain_line(book: Engine, reader: UsageReader, reference: str, number: int, events_max: int = 20) -> Explanation:
    """Explain line `number` (from 1). Raises NotFoundError."""
    row = find_invoice(book, reference)
    document = json.loads(row.document)
    lines = document["lines"]
    if not 1 <= number <= len(lines):
        raise NotFoundError(f"{reference} has lines 1 to {len(lines)}, not {number}")
    line = lines[number - 1]
    shown: list[UsageRow] = []
    count = listed = metered = 0
    if line.get("kind", "usage") == "usage":
        until = document["inputs"].get("inserted_until")
        start, end = (datetime.fromisoformat(document["period"][name]) for name in ("start", "end"))
        span = TenantSpan(row.tenant, start, end, datetime.fromisoformat(until) if until else ANY_TIME)
        place = tuple(line.get(name) for name in ("feature", "model", "rate_card"))
        for event in reader.rows([span]):
            if (event.feature, event.model, event.rate_card) == place:
                count, listed, metered = count + 1, listed + event.list_pico, metered + event.metered_pico
                if len(shown) < events_max:
                    shown.append(event)
    return Explanation(row, line, document["inputs"], shown, count, listed, metered)
