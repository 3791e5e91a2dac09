"""An invoice as a document: built from a period's charges, byte for byte the same whenever it is built again. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any

from taximeter_billing.domain.adjusting import Adjustment
from taximeter_billing.domain.charges import Charges
from taximeter_billing.domain.receipts import UsageLine, usage_lines
from taximeter_billing.domain.rounding import round_lines
from taximeter_schemas.money import pico_per_minor_unit
from taximeter_schemas.periods import Period
from taximeter_schemas.tenants import Tenant

CODE_VERSION = "4"
"""Raised when the same inputs would give another document."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What an invoice was made from; the same inputs give the same bytes.

    `inserted_until`: the newest row that was looked at; whatever came later is no part of it. `rate_cards`: version to hash.
    `line_sets`: the hash of each line's events, by (feature, model, rate card). `storage_event_set_hash`: of the events that say
    how long blocks were kept, some of them from before the period; empty where keeping them has no price.
    """

    events: int
    event_set_hash: str
    rate_cards: Mapping[str, str]
    cache_policy: str
    pool_events: int
    pool_event_set_hash: str
    inserted_until: datetime | None = None
    agreements: tuple[str, ...] = ()
    grants: Mapping[str, int] | None = None
    line_sets: Mapping[tuple[str, str, str], str] | None = None
    storage_events: int = 0
    storage_event_set_hash: str = ""


@dataclass(frozen=True, slots=True)
class Invoice:
    """A computed invoice. Totals are exact; `total_minor` is what is to be paid.

    list + adjustments - savings = net; `adjustments_pico` is all that is neither list price nor cache savings.
    """

    tenant: str
    period: str
    currency: str
    list_pico: int
    savings_pico: int
    adjustments_pico: int
    net_pico: int
    owed_pico: int
    total_minor: int
    drawn_pico: Mapping[str, int]
    document: str

    @property
    def sha256(self) -> str:
        """The document's receipt."""
        return sha256(self.document.encode()).hexdigest()


def build_invoice(
    tenant: Tenant, period: Period, currency: str, charges: Charges, inputs: Inputs, known: Mapping[str, int]
) -> Invoice:
    """Build the document: usage by feature, model and card version, then adjustments, then the total, rounded once.

    Tax is handed off in between: its base is the exact net, and whoever collects the payment computes it.
    """
    usage = usage_lines(charges.usage)
    names = {f"u{place}": line.net_pico for place, line in enumerate(usage)}
    names |= {f"a{place}": line.amount_pico for place, line in enumerate(charges.adjustments)}
    total_minor, minor = round_lines(names, currency, f"{tenant.id}/{period.label}")
    lines = [_usage(line, minor[f"u{place}"], inputs) for place, line in enumerate(usage)]
    lines += [_adjustment(line, minor[f"a{place}"]) for place, line in enumerate(charges.adjustments)]
    list_pico, savings_pico = sum(line.list_pico for line in usage), sum(line.savings_pico for line in usage)
    adjustments_pico = charges.net_pico - list_pico + savings_pico
    document = {
        "tenant": {"id": tenant.id, "name": tenant.name, "email": tenant.email},
        "period": {
            "label": period.label,
            "time_zone": tenant.time_zone,
            "start": _iso(period.start),
            "end": _iso(period.end),
        },
        "currency": currency,
        "lines": [{"line": number, **_receipted(line)} for number, line in enumerate(lines, start=1)],
        "list_pico": str(list_pico),
        "savings_pico": str(savings_pico),
        "adjustments_pico": str(adjustments_pico),
        "net_pico": str(charges.net_pico),
        "owed_pico": str(charges.owed_pico),
        "tax": {"base_pico": str(charges.net_pico), "computed_by": "payments"},
        "rounding": {
            "rule": "half up at the total, largest remainder to the lines",
            "minor_unit_pico": str(pico_per_minor_unit(currency)),
            "rounded_off_pico": str(charges.net_pico - total_minor * pico_per_minor_unit(currency)),
        },
        "total_minor": str(total_minor),
        "savings_known": {name: str(amount) for name, amount in sorted(known.items())},
        "inputs": _inputs(inputs),
    }
    return Invoice(
        tenant.id,
        period.label,
        currency,
        list_pico,
        savings_pico,
        adjustments_pico,
        charges.net_pico,
        charges.owed_pico,
        total_minor,
        dict(charges.drawn_pico),
        canonical_json(document),
    )


def canonical_json(document: Mapping[str, Any] | Sequence[Any]) -> str:
    """JSON with sorted keys and no spare spaces: equal documents are equal bytes."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _iso(moment: datetime) -> str:
    return str(moment.isoformat())


def _inputs(inputs: Inputs) -> dict[str, Any]:
    stored = {"storage_events": inputs.storage_events, "storage_event_set_hash": inputs.storage_event_set_hash}
    return {
        "events": inputs.events,
        "event_set_hash": inputs.event_set_hash,
        "pool_events": inputs.pool_events,
        "pool_event_set_hash": inputs.pool_event_set_hash,
        "inserted_until": inputs.inserted_until.isoformat() if inputs.inserted_until else None,
        "rate_cards": sorted(inputs.rate_cards),
        "rate_card_sha256": dict(sorted(inputs.rate_cards.items())),
        "cache_policy": inputs.cache_policy,
        "agreements": list(inputs.agreements),
        "grants": {name: str(balance) for name, balance in sorted((inputs.grants or {}).items())},
        "code_version": CODE_VERSION,
        **(stored if inputs.storage_event_set_hash else {}),
    }


def _usage(line: UsageLine, amount_minor: int, inputs: Inputs) -> dict[str, Any]:
    place = (line.feature, line.model, line.rate_card)
    return {
        "kind": "usage",
        "feature": line.feature,
        "model": line.model,
        "rate_card": line.rate_card,
        "events": line.events,
        "tokens": line.tokens,
        "list_pico": str(line.list_pico),
        "tier_pico": str(line.tier_pico),
        "savings_pico": str(line.savings_pico),
        "net_pico": str(line.net_pico),
        "amount_minor": str(amount_minor),
        "receipt": {
            "components": line.components,
            "tiers": line.tiers,
            "rate_card_sha256": inputs.rate_cards.get(line.rate_card, ""),
            "cache_policy": inputs.cache_policy,
            "event_set_hash": (inputs.line_sets or {}).get(place, ""),
        },
    }


def _adjustment(line: Adjustment, amount_minor: int) -> dict[str, Any]:
    return {
        "kind": line.kind,
        "id": line.id,
        "feature": line.kind,
        "model": line.label,
        "rate_card": "",
        "events": 0,
        "tokens": {"uncached_input": 0, "cache_read": 0, "cache_write": 0, "output": 0},
        "list_pico": "0",
        "tier_pico": "0",
        "savings_pico": "0",
        "net_pico": str(line.amount_pico),
        "amount_minor": str(amount_minor),
        "receipt": {"detail": dict(sorted(line.detail.items()))},
    }


def _receipted(line: dict[str, Any]) -> dict[str, Any]:
    """The line with the hash of all that its amount was made from."""
    made_from = {name: value for name, value in line.items() if name != "amount_minor"}
    digest = sha256(canonical_json(made_from).encode()).hexdigest()
    return {**line, "receipt": {**line["receipt"], "inputs_sha256": digest}}
