"""Pushes an invoice to Stripe so that it is there exactly once, whatever was cut off before.

Every write that creates or moves something has an idempotency key made of the invoice, the step and the request itself, so a
push that is repeated says the same again. Stripe forgets keys after a day, and its search lags behind by up to a minute (an
hour when it is ill), so before creating anything we look for it twice: by search, which knows everything but late, and in the
customer's own list, which knows at once. Total and lines are compared before the invoice is finalized.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import stripe

from taximeter_billing.payments.customers import find_or_create_customer
from taximeter_billing.payments.errors import (
    DuplicateInvoiceError,
    LinesMismatchError,
    LiveKeyError,
    MissingKeyError,
    NegativeInvoiceError,
    StripeRefusedError,
    TotalMismatchError,
)
from taximeter_billing.payments.invoices import PushInvoice, PushLine, PushResult, lines_for_stripe
from taximeter_billing.payments.keys import IdempotencyKeys, quoted
from taximeter_billing.payments.metadata import noted

API_VERSION = "2026-05-27.dahlia"
"""The version of Stripe's API that we speak: the one whose published contract the tests check every request against."""

CHUNK_LINES = 100
RETRIES = 4
GENERATIONS_MAX = 8
WAIT_SECONDS_MAX = 30.0


def stripe_client(api_key: str, url: str = "", *, live: bool = False, retries: int = RETRIES) -> stripe.StripeClient:
    """A client for Stripe, or for the double at `url`. Raises MissingKeyError, and LiveKeyError for a live key unless `live`."""
    if not api_key.startswith(("sk_test_", "rk_test_", "sk_live_", "rk_live_")):
        raise MissingKeyError("a secret key of Stripe is needed (sk_test_...); see TAXIMETER_STRIPE_API_KEY")
    if api_key.startswith(("sk_live_", "rk_live_")) and not live:
        raise LiveKeyError("this is a live key; set TAXIMETER_STRIPE_LIVE=true to bill real customers")
    addresses: Any = {"api": url} if url else {}
    return stripe.StripeClient(
        api_key, base_addresses=addresses, max_network_retries=retries, stripe_version=API_VERSION
    )


def push_invoice(
    client: stripe.StripeClient,
    invoice: PushInvoice,
    *,
    send: bool = False,
    tries_max: int = 1,
    wait: Callable[[float], None] = time.sleep,
) -> PushResult:
    """Bring the invoice to Stripe: customer, draft, lines, comparison, finalized, e-mailed if `send`. Again: nothing changes.

    What passes by itself (429, 5xx, a broken connection) is tried `tries_max` times, on top of the client's own retries, with
    a doubling wait from one second. Raises a PaymentError by name; calling it again goes on where it stopped.
    """
    if invoice.total_minor < 0:
        raise NegativeInvoiceError(f"{invoice.number} totals {invoice.total_minor} {invoice.currency}")
    tries = 1
    while True:
        try:
            return _push_past_kept_answers(client, invoice, send)
        except stripe.StripeError as error:
            if tries >= tries_max or not _passes_by_itself(error):
                raise StripeRefusedError(f"Stripe: {error.user_message or error}") from error
        wait(min(WAIT_SECONDS_MAX, 2.0 ** (tries - 1)))
        tries += 1


def _push_past_kept_answers(client: stripe.StripeClient, invoice: PushInvoice, send: bool) -> PushResult:
    """Stripe keeps a key's answer for a day, a failure too. So a kept failure is followed by a fresh look and a fresh key."""
    generation = 0
    while True:
        try:
            return _Push(client, invoice, generation).run(send)
        except stripe.StripeError as error:
            generation += 1
            if generation == GENERATIONS_MAX or not _is_kept(error):
                raise


def _is_kept(error: stripe.StripeError) -> bool:
    """Whether the answer was an old one: a failure that Stripe replays, or a creation whose object was deleted since."""
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    return headers.get("idempotent-replayed") == "true" or error.code == "resource_missing"


def _passes_by_itself(error: stripe.StripeError) -> bool:
    if isinstance(error, stripe.RateLimitError | stripe.APIConnectionError):
        return True
    return error.http_status == 409 or (error.http_status or 0) >= 500


class _Push:
    """One pass over the steps. Each looks at what is there before it writes."""

    def __init__(self, client: stripe.StripeClient, invoice: PushInvoice, generation: int) -> None:
        self._invoices = client.v1.invoices
        self._client = client
        self._invoice = invoice
        self._lines = lines_for_stripe(invoice)
        self._keys = IdempotencyKeys(invoice.number, generation)

    def run(self, send: bool) -> PushResult:
        customer = find_or_create_customer(self._client, self._invoice, self._keys.generation)
        stripe_id = self._find(customer.id)
        created = False
        if stripe_id is None:
            stripe_id, created = self._create(customer)
        # What was found or created may be an old picture: search lags, and a kept answer shows the draft as it was born.
        current = self._invoices.retrieve(stripe_id)
        if current.status == "draft":
            self._require_currency(current)
            self._add_lines(stripe_id)
            current = self._invoices.retrieve(stripe_id)
            self._require_total(current)
            self._require_lines(stripe_id)
            params: Any = {"auto_advance": False}
            current = self._invoices.finalize_invoice(stripe_id, params, self._keys.options("finalize", [stripe_id]))
        self._require_total(current)
        if send:
            current = self._send(self._invoices.retrieve(stripe_id))
        return PushResult(stripe_id, customer.id, current.total, current.status or "unknown", created)

    def _find(self, customer_id: str) -> str | None:
        """The invoice of our number, by search and in the customer's list. Voided ones count only where there is no other."""
        number = self._invoice.number
        searched = self._invoices.search({"query": f"metadata['taximeter_invoice']:'{quoted(number)}'", "limit": 100})
        listed = self._invoices.list({"customer": customer_id, "limit": 100})
        found = {one.id: one for one in searched.auto_paging_iter()} | {
            one.id: one for one in listed.auto_paging_iter() if noted(one, "taximeter_invoice") == number
        }
        standing = [one.id for one in found.values() if one.status != "void"]
        if len(standing) > 1:
            raise DuplicateInvoiceError(f"{number} is in Stripe as {', '.join(sorted(standing))}")
        return next(iter(standing), None) or next(iter(found), None)

    def _create(self, customer: stripe.Customer) -> tuple[str, bool]:
        invoice = self._invoice
        params: Any = {
            "customer": customer.id,
            "currency": invoice.currency.lower(),
            "number": invoice.number,
            "auto_advance": False,
            "pending_invoice_items_behavior": "exclude",
            "description": f"Usage {invoice.period_start:%Y-%m-%d} to {invoice.period_end:%Y-%m-%d} (UTC)",
            "metadata": {"taximeter_invoice": invoice.number, "taximeter_tenant": invoice.tenant},
        }
        if customer.email:
            params |= {"collection_method": "send_invoice", "days_until_due": 30}
        else:  # Stripe sends nothing to nobody; with auto_advance off, nothing is charged by itself either.
            params["collection_method"] = "charge_automatically"
        made = self._invoices.create(params, self._keys.options("create", params))
        answer = getattr(made, "last_response", None)
        headers: Mapping[str, str] = answer.headers if answer is not None else {}
        return made.id, headers.get("Idempotent-Replayed") != "true"

    def _add_lines(self, stripe_id: str) -> None:
        """Add the lines that are not there yet; each carries its place, so a push that was cut off goes on behind it."""
        there = {noted(line, "taximeter_line") for line in self._stripe_lines(stripe_id)}
        missing = [(place, line) for place, line in enumerate(self._lines) if str(place) not in there]
        for start in range(0, len(missing), CHUNK_LINES):
            chunk = missing[start : start + CHUNK_LINES]
            params: Any = {"lines": [self._line(place, line) for place, line in chunk]}
            key = self._keys.options(f"lines-{chunk[0][0]}", [stripe_id, params])
            self._invoices.add_lines(stripe_id, params, key)

    def _line(self, place: int, line: PushLine) -> dict[str, Any]:
        start, end = self._invoice.period_start, self._invoice.period_end
        return {
            "description": line.description,
            "amount": line.amount_minor,
            "period": {"start": int(start.timestamp()), "end": int(end.timestamp())},
            "metadata": dict(line.metadata) | {"taximeter_line": str(place), "taximeter_feature": line.feature},
        }

    def _stripe_lines(self, stripe_id: str) -> list[stripe.InvoiceLineItem]:
        return list(self._invoices.line_items.list(stripe_id, {"limit": 100}).auto_paging_iter())

    def _require_currency(self, found: stripe.Invoice) -> None:
        ours = self._invoice.currency.lower()
        if found.currency != ours:
            raise TotalMismatchError(
                f"{self._invoice.number}: Stripe's {found.id} is in {found.currency}, ours in {ours}"
            )

    def _require_total(self, found: stripe.Invoice) -> None:
        self._require_currency(found)
        if found.total != self._invoice.total_minor:
            raise TotalMismatchError(
                f"{self._invoice.number}: Stripe's {found.id} totals {found.total}, the invoice"
                f" {self._invoice.total_minor} {found.currency} (minor units)"
            )

    def _require_lines(self, stripe_id: str) -> None:
        theirs = sorted((noted(line, "taximeter_line") or "", line.amount) for line in self._stripe_lines(stripe_id))
        ours = sorted((str(place), line.amount_minor) for place, line in enumerate(self._lines))
        if theirs != ours:
            strange = [f"{place or 'unknown'}: {amount}" for place, amount in theirs if (place, amount) not in ours]
            raise LinesMismatchError(
                f"{self._invoice.number}: Stripe's {stripe_id} has {len(theirs)} lines, the invoice {len(ours)};"
                f" not ours: {strange[:5]}"
            )

    def _send(self, current: stripe.Invoice) -> stripe.Invoice:
        """E-mail an open invoice once. That it went out is noted on it, because keys are forgotten after a day."""
        if current.status != "open" or noted(current, "taximeter_sent") == "true":
            return current
        sent = self._invoices.send_invoice(current.id, None, self._keys.options("send", [current.id]))
        params: Any = {"metadata": {"taximeter_sent": "true"}}
        self._invoices.update(current.id, params, self._keys.options("sent", [current.id, params]))
        return sent
