"""Pushes an invoice to Stripe so that it is there exactly once, whatever was cut off before.

Every write has an idempotency key made of the invoice, the step and the request itself; before anything is created it is looked
for by its metadata, because Stripe forgets keys after a day. The total is compared before the invoice is finalized.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import stripe

from taximeter_billing.payments.errors import LiveKeyError, NegativeInvoiceError, StripeRefusedError, TotalMismatchError
from taximeter_billing.payments.invoices import PushInvoice, PushLine, PushResult, lines_for_stripe

CHUNK_LINES = 100
RETRIES = 4


def stripe_client(api_key: str, url: str = "", *, live: bool = False) -> stripe.StripeClient:
    """A client for Stripe, or for the double at `url`. Raises LiveKeyError for a live key unless `live`."""
    if not api_key.startswith(("sk_test_", "rk_test_")) and not live:
        raise LiveKeyError("this is not a test key; set TAXIMETER_STRIPE_LIVE=true to bill real customers")
    addresses: Any = {"api": url} if url else {}
    return stripe.StripeClient(api_key, base_addresses=addresses, max_network_retries=RETRIES)


def push_invoice(client: stripe.StripeClient, invoice: PushInvoice) -> PushResult:
    """Bring the invoice to Stripe: customer, draft, lines, total compared, finalized. Doing it again changes nothing.

    Raises NegativeInvoiceError, TotalMismatchError or StripeRefusedError; calling it again goes on where it stopped.
    """
    if invoice.total_minor < 0:
        raise NegativeInvoiceError(f"{invoice.number} totals {invoice.total_minor} {invoice.currency}")
    with _refusals():
        customer = _customer(client, invoice)
        found = _find_invoice(client, invoice)
        draft = found or _create_draft(client, invoice, customer)
        if draft.status == "draft":
            _add_lines(client, invoice, draft.id)
            draft = client.v1.invoices.retrieve(draft.id)
            _compare(invoice, draft)
            draft = client.v1.invoices.finalize_invoice(
                draft.id, {"auto_advance": False}, _options(invoice, "finalize", {"invoice": draft.id})
            )
        _compare(invoice, draft)
        return PushResult(draft.id, customer, draft.total, draft.status or "unknown", found is None)


def _customer(client: stripe.StripeClient, invoice: PushInvoice) -> str:
    found = client.v1.customers.search({"query": f"metadata['taximeter_tenant']:'{invoice.tenant}'", "limit": 1})
    if found.data:
        return found.data[0].id
    params: Any = {"name": invoice.tenant_name or invoice.tenant, "metadata": {"taximeter_tenant": invoice.tenant}}
    if invoice.email:
        params["email"] = invoice.email
    key = f"taximeter/customer/{invoice.tenant}/{_digest(params)}"
    return client.v1.customers.create(params, {"idempotency_key": key}).id


def _find_invoice(client: stripe.StripeClient, invoice: PushInvoice) -> stripe.Invoice | None:
    found = client.v1.invoices.search({"query": f"metadata['taximeter_invoice']:'{invoice.number}'", "limit": 1})
    return found.data[0] if found.data else None


def _create_draft(client: stripe.StripeClient, invoice: PushInvoice, customer: str) -> stripe.Invoice:
    params: Any = {
        "customer": customer,
        "currency": invoice.currency.lower(),
        "collection_method": "send_invoice",
        "days_until_due": 30,
        "auto_advance": False,
        "pending_invoice_items_behavior": "exclude",
        "description": f"Usage {invoice.period_start:%Y-%m-%d} to {invoice.period_end:%Y-%m-%d} (UTC)",
        "metadata": {"taximeter_invoice": invoice.number, "taximeter_tenant": invoice.tenant},
    }
    return client.v1.invoices.create(params, _options(invoice, "create", params))


def _add_lines(client: stripe.StripeClient, invoice: PushInvoice, stripe_id: str) -> None:
    """Add the lines that are not there yet; each carries its place, so a push that was cut off goes on behind it."""
    there = {
        line.metadata["taximeter_line"]
        for line in client.v1.invoices.line_items.list(stripe_id, {"limit": 100}).auto_paging_iter()
        if line.metadata and "taximeter_line" in line.metadata
    }
    missing = [(place, line) for place, line in enumerate(lines_for_stripe(invoice)) if str(place) not in there]
    for start in range(0, len(missing), CHUNK_LINES):
        chunk = missing[start : start + CHUNK_LINES]
        params: Any = {"lines": [_line(invoice, place, line) for place, line in chunk]}
        client.v1.invoices.add_lines(stripe_id, params, _options(invoice, f"lines-{chunk[0][0]}", params))


def _line(invoice: PushInvoice, place: int, line: PushLine) -> dict[str, Any]:
    return {
        "description": line.description,
        "amount": line.amount_minor,
        "period": {"start": int(invoice.period_start.timestamp()), "end": int(invoice.period_end.timestamp())},
        "metadata": {"taximeter_line": str(place), "taximeter_feature": line.feature},
    }


def _compare(invoice: PushInvoice, found: stripe.Invoice) -> None:
    if found.total != invoice.total_minor or found.currency != invoice.currency.lower():
        theirs, ours = f"{found.total} {found.currency}", f"{invoice.total_minor} {invoice.currency.lower()}"
        raise TotalMismatchError(
            f"{invoice.number}: Stripe's {found.id} totals {theirs}, the invoice {ours} (minor units)"
        )


def _options(invoice: PushInvoice, step: str, params: Any) -> Any:
    return {"idempotency_key": f"taximeter/{invoice.number}/{step}/{_digest(params)}"}


def _digest(params: Any) -> str:
    return sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()[:24]


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except stripe.StripeError as error:
        raise StripeRefusedError(f"Stripe: {error.user_message or error}") from error
