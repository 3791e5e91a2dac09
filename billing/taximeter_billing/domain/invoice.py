"""An invoice as a document: built from settled usage, byte for byte the same whenever it is built again. Pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from taximeter_billing.domain.rounding import round_lines
from taximeter_schemas.periods import Period
from taximeter_schemas.tenants import Tenant

CODE_VERSION = "1"
"""Raised when the same inputs would give another document."""


@dataclass(frozen=True, slots=True)
class LineUsage:
    """What a tenant used under one feature and model in a period, in tokens and exact pico-units."""

    feature: str
    model: str
    events: int
    uncached_input: int
    cache_read: int
    cache_write: int
    output: int
    list_pico: int
    savings_pico: int

    @property
    def net_pico(self) -> int:
        """What the line costs."""
        return self.list_pico - self.savings_pico


@dataclass(frozen=True, slots=True)
class Inputs:
    """What an invoice was made from; the same inputs give the same bytes."""

    events: int
    event_set_hash: str
    rate_cards: tuple[str, ...]
    cache_policy: str
    pool_events: int
    pool_event_set_hash: str


@dataclass(frozen=True, slots=True)
class Invoice:
    """A computed invoice. Totals are exact; `total_minor` is what is to be paid."""

    tenant: str
    period: str
    currency: str
    list_pico: int
    savings_pico: int
    net_pico: int
    total_minor: int
    document: str

    @property
    def sha256(self) -> str:
        """The document's receipt."""
        return sha256(self.document.encode()).hexdigest()


def build_invoice(
    tenant: Tenant, period: Period, currency: str, lines: list[LineUsage], inputs: Inputs, known: Mapping[str, int]
) -> Invoice:
    """Build the document: lines by feature and model, list, cache savings and net, then the total, rounded once."""
    ordered = sorted(lines, key=lambda line: (line.feature, line.model))
    names = {_name(line): line.net_pico for line in ordered}
    total_minor, minor = round_lines(names, currency, f"{tenant.id}/{period.label}")
    list_pico = sum(line.list_pico for line in ordered)
    savings_pico = sum(line.savings_pico for line in ordered)
    document = {
        "tenant": {"id": tenant.id, "name": tenant.name, "email": tenant.email},
        "period": {
            "label": period.label,
            "time_zone": tenant.time_zone,
            "start": _iso(period.start),
            "end": _iso(period.end),
        },
        "currency": currency,
        "lines": [_line(line, minor[_name(line)]) for line in ordered],
        "list_pico": str(list_pico),
        "savings_pico": str(savings_pico),
        "net_pico": str(list_pico - savings_pico),
        "total_minor": str(total_minor),
        "savings_known": {name: str(amount) for name, amount in sorted(known.items())},
        "inputs": {
            "events": inputs.events,
            "event_set_hash": inputs.event_set_hash,
            "pool_events": inputs.pool_events,
            "pool_event_set_hash": inputs.pool_event_set_hash,
            "rate_cards": list(inputs.rate_cards),
            "cache_policy": inputs.cache_policy,
            "code_version": CODE_VERSION,
        },
    }
    text = canonical_json(document)
    return Invoice(
        tenant.id, period.label, currency, list_pico, savings_pico, list_pico - savings_pico, total_minor, text
    )


def canonical_json(document: Mapping[str, Any]) -> str:
    """JSON with sorted keys and no spare spaces: equal documents are equal bytes."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _name(line: LineUsage) -> str:
    return f"{line.feature}\n{line.model}"


def _iso(moment: Any) -> str:
    return str(moment.isoformat())


def _line(line: LineUsage, amount_minor: int) -> dict[str, Any]:
    return {
        "feature": line.feature,
        "model": line.model,
        "events": line.events,
        "tokens": {
            "uncached_input": line.uncached_input,
            "cache_read": line.cache_read,
            "cache_write": line.cache_write,
            "output": line.output,
        },
        "list_pico": str(line.list_pico),
        "savings_pico": str(line.savings_pico),
        "net_pico": str(line.net_pico),
        "amount_minor": str(amount_minor),
    }
