"""Shows how one line of an invoice came about, down to the events."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Engine

from taximeter_billing.book import InvoiceRow
from taximeter_billing.domain.storage import STORAGE
from taximeter_billing.domain.storage_lines import LOOKBACK
from taximeter_billing.domain.usage import UsageRow
from taximeter_billing.errors import NotFoundError
from taximeter_billing.lifecycle import find_invoice
from taximeter_billing.warehouse import BEFORE_ANY, TenantSpan, UsageReader


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
        """Whether the events add up to the line, which those of a storage line do not: it is made of how long blocks stayed."""
        return self.line.get("kind", "usage") != "usage" or (
            self.events_all == self.line["events"] and self.list_pico == int(self.line["list_pico"])
        )


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
    for event in _events(reader, row.tenant, document, line):
        count, listed, metered = count + 1, listed + event.list_pico, metered + event.metered_pico
        if len(shown) < events_max:
            shown.append(event)
    return Explanation(row, line, document["inputs"], shown, count, listed, metered)


def _events(
    reader: UsageReader, tenant: str, document: Mapping[str, Any], line: Mapping[str, Any]
) -> Iterator[UsageRow]:
    """The tenant's events that a usage line adds up, or whose blocks a storage line keeps; no other line is made of events."""
    kind = line.get("kind", "usage")
    until = document["inputs"].get("inserted_until")
    moment = datetime.fromisoformat(until) if until else BEFORE_ANY
    if kind == "usage":
        start, end = (datetime.fromisoformat(document["period"][name]) for name in ("start", "end"))
        place = tuple(line.get(name) for name in ("feature", "model", "rate_card"))
        for event in reader.rows([TenantSpan(tenant, start, end, moment)]):
            if (event.feature, event.model, event.rate_card) == place:
                yield event
    elif kind == STORAGE:
        detail = line["receipt"]["detail"]
        start, end = (datetime.fromisoformat(detail[name]) for name in ("from", "to"))
        for event in reader.rows([TenantSpan(tenant, start - LOOKBACK, end, moment)]):
            if event.blocks and (event.feature, event.model) == (detail["feature"], detail["model"]):
                yield event
