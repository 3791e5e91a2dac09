"""Invoices for tests of exports: built by the real arithmetic from parcels and agreements, as closing builds them."""

from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from taximeter_billing.declarations.agreements import read_contract
from taximeter_billing.domain.adjusting import Adjustment
from taximeter_billing.domain.charges import Agreed, charge
from taximeter_billing.domain.contracts import agreement
from taximeter_billing.domain.credits import Grant
from taximeter_billing.domain.invoice import Inputs, build_invoice
from taximeter_billing.domain.parcels import Component, Parcel
from taximeter_billing.domain.spans import spans_of
from taximeter_billing.domain.takeback import Reserved
from taximeter_billing.exports import ExportedInvoice, Issuer, from_document
from taximeter_schemas.money import to_pico
from taximeter_schemas.periods import billing_month
from taximeter_schemas.tenants import Tenant

MICRO = 1_000_000
"""Pico-units of a price of 1 a million."""

INPUTS = Inputs(
    events=12_345,
    event_set_hash="ab" * 16,
    rate_cards={"default@1": "cd" * 32},
    cache_policy="fair@3",
    pool_events=40_000,
    pool_event_set_hash="ef" * 16,
    inserted_until=datetime(2026, 12, 4, tzinfo=UTC),
)
ISSUER = Issuer("Inference Works GmbH", "Kanalstraße 7\n10115 Berlin", "DE123456789")


def parcel(
    feature: str,
    fresh: int,
    cached: int = 0,
    output: int = 0,
    *,
    model: str = "llama-70b",
    requests: int = 1,
    saved_pico: int | None = None,
) -> Parcel:
    """Input at 3 a million, cached input at 0.30, output at 15; what policy says was saved, or what the tenant saved itself."""
    parts = [Component(model, "uncached_input", fresh, 3 * MICRO, fresh * 3 * MICRO)]
    if cached:
        parts.append(Component(model, "cache_read_gpu", cached, 300_000, cached * 3 * MICRO))
    if output:
        parts.append(Component(model, "output", output, 15 * MICRO, output * 15 * MICRO))
    listed, metered = sum(part.list_pico for part in parts), sum(part.amount_pico for part in parts)
    savings = listed - metered if saved_pico is None else saved_pico
    return Parcel(feature, model, "default@1", 0, requests, tuple(parts), listed, metered, savings)


def exported(
    parcels: Sequence[Parcel],
    *,
    tenant: Tenant | None = None,
    currency: str = "USD",
    grants: tuple[Grant, ...] = (),
    late: Sequence[Adjustment] = (),
    known: dict[str, int] | None = None,
    number: str | None = "INV-000042",
    issuer: Issuer = ISSUER,
    **terms: Any,
) -> ExportedInvoice:
    """An invoice of November 2026. `terms` are those of a contract."""
    who = tenant or Tenant(id="acme", name="Acme Stores", email="billing@acme.example", currency=currency)
    month = billing_month("2026-11", who.time_zone)
    held = []
    if terms:
        full = {"id": "frame", "tenant": who.id, "starts": "2026-01-01T00:00:00Z", **terms}
        held = [agreement(read_contract(full), {})]
    reserved = [Reserved.between(one, month.start, month.end) for it in held for one in it.terms.reservations]
    agreed = Agreed(month, who.time_zone, currency, spans_of(month, held, grants), reserved, grants)
    found = charge(parcels, agreed, who.id, late)
    savings = known or {"exact": to_pico("4"), "inferred": to_pico("1"), "unattributed": 0}
    document = build_invoice(who, month, currency, found, INPUTS, savings).document
    status, at = ("final", datetime(2026, 12, 4, 9, 30, tzinfo=UTC)) if number else ("draft", None)
    return from_document(document, status, number, sha256(document.encode()).hexdigest(), at, issuer)


def busy(number: str | None = "INV-000042", **more: Any) -> ExportedInvoice:
    """An invoice that has everything: features, savings that a policy moved, tiers, discount, credit, minimum, late usage."""
    parcels = [
        parcel("chat", 1_234_567, 400_001, 98_765, requests=4_321),
        parcel("search", 2_000_003, 1_000_000, 7, requests=900, saved_pico=to_pico("1.234567890123")),
        parcel("search", 77, 0, 3, model="qwen-7b", requests=2),
    ]
    tiers = [{"up_to": 50_000, "price": "15"}, {"price": "12"}]
    terms: dict[str, Any] = {
        "minimum": {"amount": "500"},
        "discounts": [{"id": "launch", "percent": "10"}],
        "tariffs": [{"id": "out", "meter": "output", "mode": "graduated", "tiers": tiers}],
    }
    detail = {"period": "2026-10", "invoice": "INV-000007", "owed_before_pico": "1", "owed_now_pico": "123456789"}
    late = [Adjustment("true_up", "INV-000007", "late usage of 2026-10, invoice INV-000007", 123_456_788, detail)]
    start = datetime(2026, 1, 1, tzinfo=UTC)
    grants = (Grant("welcome", to_pico("5"), effective_at=start),)
    return exported(parcels, grants=grants, late=late, number=number, **{**terms, **more})
