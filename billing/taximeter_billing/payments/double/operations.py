"""What the double does on each request: the rules of Stripe's that Taximeter depends on, over the store."""

import re
import secrets
from collections.abc import Callable
from typing import Any

from taximeter_billing.payments.double import objects
from taximeter_billing.payments.double.forms import whole
from taximeter_billing.payments.double.objects import Body
from taximeter_billing.payments.double.refusals import RefusedError, missing
from taximeter_billing.payments.double.store import Store

LINES_MAX = 250
METADATA_ENTRIES_MAX, METADATA_NAME_CHARS_MAX, METADATA_VALUE_CHARS_MAX = 50, 40, 500
NUMBER_CHARS_MAX = 26
CANCEL_SECONDS_MAX = 24 * 3600
_QUERY = re.compile(r"metadata\['((?:[^'\\]|\\.)+)'\]:'((?:[^'\\]|\\.)*)'")


class Operations:
    """One method an operation; each takes the object's id from the path ("" where there is none) and the form."""

    def __init__(self, store: Store, clock: Callable[[], int]) -> None:
        self._store = store
        self._clock = clock
        self._searchable: dict[str, list[Body]] | None = None
        self.key: str | None = None

    def pause_search(self, paused: bool) -> None:
        """Stop or resume taking changes into the search index: Stripe's lags behind by up to a minute, and more when ill."""
        kinds = ("customer", "invoice")
        self._searchable = {kind: self._store.all(kind) for kind in kinds} if paused else None

    def create_customer(self, _id: str, form: Body) -> Body:
        """POST /v1/customers"""
        made = objects.customer(self._store.next_number(), self._clock(), form)
        return self._kept(_noted(made, form), "customer.created")

    def update_customer(self, customer_id: str, form: Body) -> Body:
        """POST /v1/customers/{customer}"""
        found = self._find(customer_id, "customer")
        changed: Body = {name: form[name] or None for name in ("name", "email") if name in form}
        return self._kept(_noted({**found, **changed}, form), "customer.updated")

    def get_customer(self, customer_id: str, _form: Body) -> Body:
        """GET /v1/customers/{customer}"""
        return self._find(customer_id, "customer")

    def list_customers(self, _id: str, form: Body) -> Body:
        """GET /v1/customers"""
        found = [one for one in self._store.all("customer") if form.get("email") in (None, one["email"])]
        return _paged("/v1/customers", found, form)

    def search_customers(self, _id: str, form: Body) -> Body:
        """GET /v1/customers/search"""
        return objects.search_page("/v1/customers/search", self._search("customer", form))

    def create_invoice(self, _id: str, form: Body) -> Body:
        """POST /v1/invoices"""
        customer = self._find(form.get("customer", ""), "customer")
        sent = form.get("collection_method") == "send_invoice"
        if sent and not customer["email"]:
            raise RefusedError(
                400, "Missing email. To send an invoice, the customer must have a valid email.", kept=True
            )
        if "days_until_due" in form:
            whole(form["days_until_due"], "days_until_due")
        if sent != ("days_until_due" in form):
            raise RefusedError(400, "send_invoice and days_until_due belong together", parameter="days_until_due")
        number = form.get("number")
        if number is not None and len(number) > NUMBER_CHARS_MAX:
            raise RefusedError(
                400, f"an invoice's number has at most {NUMBER_CHARS_MAX} characters", parameter="number"
            )
        if number is not None and any(one["number"] == number for one in self._store.all("invoice")):
            raise RefusedError(
                400, f"there is an invoice with the number {number} already", parameter="number", kept=True
            )
        made = objects.invoice(self._store.next_number(), self._clock(), form)
        return self._kept(_noted(made, form), "invoice.created")

    def update_invoice(self, invoice_id: str, form: Body) -> Body:
        """POST /v1/invoices/{invoice}: metadata at any time, the description of drafts"""
        found = self._find(invoice_id, "invoice")
        if "description" in form:
            found = {**self._draft(invoice_id), "description": form["description"] or None}
        return self._kept(_noted(found, form), "invoice.updated")

    def delete_invoice(self, invoice_id: str, _form: Body) -> Body:
        """DELETE /v1/invoices/{invoice}: drafts only"""
        self._draft(invoice_id)
        gone = {"id": invoice_id, "object": "invoice", "deleted": True}
        self._store.put(gone, "deleted")
        return gone

    def get_invoice(self, invoice_id: str, _form: Body) -> Body:
        """GET /v1/invoices/{invoice}"""
        return objects.shown(self._find(invoice_id, "invoice"))

    def list_invoices(self, _id: str, form: Body) -> Body:
        """GET /v1/invoices"""
        wanted = [(name, form[name]) for name in ("customer", "status") if name in form]
        every = [one for one in self._store.all("invoice") if all(one[name] == value for name, value in wanted)]
        return _paged("/v1/invoices", [objects.shown(body) for body in every], form)

    def search_invoices(self, _id: str, form: Body) -> Body:
        """GET /v1/invoices/search"""
        return objects.search_page("/v1/invoices/search", [objects.shown(one) for one in self._search("invoice", form)])

    def list_lines(self, invoice_id: str, form: Body) -> Body:
        """GET /v1/invoices/{invoice}/lines"""
        found = self._find(invoice_id, "invoice")
        return _paged(f"/v1/invoices/{found['id']}/lines", found["line_data"], form)

    def add_lines(self, invoice_id: str, form: Body) -> Body:
        """POST /v1/invoices/{invoice}/add_lines"""
        added = form.get("lines")
        if not isinstance(added, list) or not all(isinstance(entry, dict) for entry in added):
            raise RefusedError(400, "Missing required param: lines.", code="parameter_missing", parameter="lines")
        found = self._draft(invoice_id)
        if len(found["line_data"]) + len(added) > LINES_MAX:
            raise RefusedError(400, f"an invoice has at most {LINES_MAX} lines", kept=True)
        first = len(found["line_data"]) + int(found["id"][-8:]) * 1000
        lines = [_line(first + place, found, entry) for place, entry in enumerate(added)]
        changed = objects.with_sums({**found, "line_data": [*found["line_data"], *lines]})
        return self._kept(changed, "invoice.updated")

    def finalize(self, invoice_id: str, _form: Body) -> Body:
        """POST /v1/invoices/{invoice}/finalize"""
        found = self._draft(invoice_id)
        if not found["line_data"]:
            # Stricter than Stripe may be: nothing of ours may depend on an invoice without lines.
            raise RefusedError(400, "an invoice without lines", code="invoice_no_customer_line_items", kept=True)
        if found["total"] < 0:
            raise RefusedError(400, "an invoice's total cannot be negative", kept=True)
        number = found["number"] or f"DOUBLE-{int(found['id'][-8:]):04d}"
        opened = self._moved({**found, "number": number}, "open", "finalized_at", "invoice.finalized")
        return (
            opened
            if found["total"]
            else self._moved(self._find(invoice_id, "invoice"), "paid", "paid_at", "invoice.paid")
        )

    def send(self, invoice_id: str, _form: Body) -> Body:
        """POST /v1/invoices/{invoice}/send: an event, and no e-mail"""
        found = self._standing(invoice_id, "sent")
        if found["collection_method"] != "send_invoice":
            raise RefusedError(400, "only an invoice with collection_method=send_invoice can be sent", kept=True)
        return self._kept(found, "invoice.sent")

    def void(self, invoice_id: str, _form: Body) -> Body:
        """POST /v1/invoices/{invoice}/void"""
        return self._moved(self._standing(invoice_id, "void"), "void", "voided_at", "invoice.voided")

    def pay(self, invoice_id: str, _form: Body) -> Body:
        """POST /v1/invoices/{invoice}/pay: succeeds, without money; `fail_payment` is for what does not"""
        found = self._standing(invoice_id, "paid")
        self._kept(objects.invoice_payment(self._store.next_number(), self._clock(), found), "invoice_payment.paid")
        return self._moved({**found, "attempted": True}, "paid", "paid_at", "invoice.paid")

    def fail_payment(self, invoice_id: str) -> Body:
        """A planned attempt to collect an open invoice that fails."""
        found = self._standing(invoice_id, "paid")
        tried = {**found, "attempted": True, "attempt_count": found["attempt_count"] + 1}
        return self._kept(tried, "invoice.payment_failed")

    def dispute(self, invoice_id: str, status: str) -> Body:
        """A planned dispute of a paid invoice, or its next status."""
        payments = [one for one in self._store.all("invoice_payment") if one["invoice"] == invoice_id]
        if not payments:
            raise RefusedError(400, "only what was paid can be disputed")
        intent = payments[0]["payment"]["payment_intent"]
        known = next((one for one in self._store.all("dispute") if one["payment_intent"] == intent), None)
        if known is None:
            made = objects.dispute(self._store.next_number(), self._clock(), payments[0], status)
            return self._kept(made, "charge.dispute.created")
        closed = status in {"won", "lost", "warning_closed"}
        return self._kept({**known, "status": status}, f"charge.dispute.{'closed' if closed else 'updated'}")

    def list_invoice_payments(self, _id: str, form: Body) -> Body:
        """GET /v1/invoice_payments"""
        intent = (form.get("payment") or {}).get("payment_intent")
        found = [
            one
            for one in self._store.all("invoice_payment")
            if form.get("invoice") in (None, one["invoice"]) and intent in (None, one["payment"]["payment_intent"])
        ]
        return _paged("/v1/invoice_payments", found, form)

    def list_disputes(self, _id: str, form: Body) -> Body:
        """GET /v1/disputes"""
        found = [
            one for one in self._store.all("dispute") if form.get("payment_intent") in (None, one["payment_intent"])
        ]
        return _paged("/v1/disputes", found, form)

    def create_meter_event(self, _id: str, form: Body) -> Body:
        """POST /v1/billing/meter_events: an identifier counts once"""
        payload = form.get("payload")
        if not form.get("event_name") or not isinstance(payload, dict):
            raise RefusedError(400, "event_name and payload are required", code="parameter_missing")
        made = objects.meter_event(self._store.next_number(), self._clock(), form)
        key = f"mtr_{made['identifier']}"
        if self._store.get(key, "meter_event") is not None:
            message = f"An event already exists with identifier {made['identifier']}."
            raise RefusedError(400, message, parameter="identifier", kept=True)
        self._store.put({**made, "id": key}, "meter_event")
        return made

    def cancel_meter_event(self, _id: str, form: Body) -> Body:
        """POST /v1/billing/meter_event_adjustments: within 24 hours, and once"""
        name = form.get("cancel", {}).get("identifier", "")
        found = self._store.get(f"mtr_{name}", "meter_event")
        if found is None or found["event_name"] != form.get("event_name"):
            raise RefusedError(400, f"There is no event with identifier {name}.", parameter="cancel[identifier]")
        if found.get("cancelled") or self._clock() - found["created"] > CANCEL_SECONDS_MAX:
            message = f"The event with identifier {name} can no longer be cancelled."
            raise RefusedError(400, message, parameter="cancel[identifier]", kept=True)
        self._store.put({**found, "cancelled": True}, "meter_event")
        return objects.meter_event_adjustment(form)

    def mark_uncollectible(self, invoice_id: str, _form: Body) -> Body:
        """POST /v1/invoices/{invoice}/mark_uncollectible"""
        found, moment = self._standing(invoice_id, "uncollectible"), "marked_uncollectible_at"
        return self._moved(found, "uncollectible", moment, "invoice.marked_uncollectible")

    def create_credit_note(self, _id: str, form: Body) -> Body:
        """POST /v1/credit_notes, by amount; on a paid invoice the money must go somewhere: balance or outside of Stripe"""
        found = self._find(form.get("invoice", ""), "invoice")
        if found["status"] not in {"open", "paid"}:
            raise RefusedError(400, f"an invoice that is {found['status']} takes no credit note", kept=True)
        amount = whole(form.get("amount"), "amount")
        paid = found["status"] == "paid"
        back = sum(whole(form[name], name) for name in ("credit_amount", "out_of_band_amount") if name in form)
        left = found["total"] - found["post_payment_credit_notes_amount"] - found["pre_payment_credit_notes_amount"]
        if not 0 < amount <= left:
            raise RefusedError(400, f"the invoice has {left} left to credit", parameter="amount", kept=True)
        if back != (amount if paid else 0):
            raise RefusedError(
                400, "what goes back must be the whole amount of a paid invoice's note, and else nothing"
            )
        made = objects.credit_note(self._store.next_number(), self._clock(), found, amount, form)
        self._kept(made, "credit_note.created")
        field = "post_payment_credit_notes_amount" if paid else "pre_payment_credit_notes_amount"
        changed = objects.with_sums({**found, field: found[field] + amount})
        self._kept(changed, "invoice.updated")
        if not paid and changed["amount_remaining"] == 0:
            self._moved(changed, "paid", "paid_at", "invoice.paid")
        return made

    def get_credit_note(self, note_id: str, _form: Body) -> Body:
        """GET /v1/credit_notes/{id}"""
        return self._find(note_id, "credit_note")

    def list_credit_notes(self, _id: str, form: Body) -> Body:
        """GET /v1/credit_notes"""
        every = self._store.all("credit_note")
        return _paged("/v1/credit_notes", [one for one in every if form.get("invoice") in (None, one["invoice"])], form)

    def create_webhook_endpoint(self, _id: str, form: Body) -> Body:
        """POST /v1/webhook_endpoints"""
        if not str(form.get("url", "")).startswith(("http://", "https://")):
            raise RefusedError(400, "Invalid URL", code="url_invalid", parameter="url")
        made = objects.webhook_endpoint(
            self._store.next_number(), self._clock(), f"whsec_{secrets.token_hex(16)}", form
        )
        self._store.put(made)
        return made

    def get_event(self, event_id: str, _form: Body) -> Body:
        """GET /v1/events/{id}"""
        return self._find(event_id, "event")

    def list_events(self, _id: str, form: Body) -> Body:
        """GET /v1/events"""
        return _paged(
            "/v1/events", [one for one in self._store.all("event") if form.get("type") in (None, one["type"])], form
        )

    def _standing(self, invoice_id: str, wanted: str) -> Body:
        found = self._find(invoice_id, "invoice")
        if found["status"] != "open":
            raise RefusedError(400, f"an invoice that is {found['status']} cannot be {wanted}", kept=True)
        return found

    def _moved(self, found: Body, status: str, moment: str, event: str) -> Body:
        moments = {**found["status_transitions"], moment: self._clock()}
        return self._kept(objects.with_sums({**found, "status": status, "status_transitions": moments}), event)

    def _draft(self, invoice_id: str) -> Body:
        found = self._find(invoice_id, "invoice")
        if found["status"] != "draft":
            message = "this invoice is finalized and cannot be changed"
            raise RefusedError(400, message, code="invoice_not_editable", kept=True)
        return found

    def _find(self, object_id: str, kind: str) -> Body:
        found = self._store.get(object_id, kind)
        if found is None:
            raise missing(kind, object_id)
        return found

    def _search(self, kind: str, form: Body) -> list[Body]:
        match = _QUERY.fullmatch(str(form.get("query", "")).strip())
        if match is None:
            raise RefusedError(400, "the double searches by one metadata entry only: metadata['key']:'value'")
        name, value = (re.sub(r"\\(.)", r"\1", part) for part in match.groups())
        known = self._store.all(kind) if self._searchable is None else self._searchable[kind]
        return [body for body in known if body["metadata"].get(name) == value][: _limit(form)]

    def _kept(self, body: Body, event: str) -> Body:
        """Keep the object, and what happened to it, for those who listen."""
        self._store.put(body)
        endpoints = [
            one["id"]
            for one in self._store.all("webhook_endpoint")
            if "*" in one["enabled_events"] or event in one["enabled_events"]
        ]
        happened = objects.event(
            self._store.next_number(), self._clock(), event, objects.shown(body), len(endpoints), self.key
        )
        self._store.put(happened)
        for endpoint in endpoints:
            self._store.add_delivery(happened["id"], endpoint)
        return objects.shown(body)


def _noted(body: Body, form: Body) -> Body:
    """The object with its metadata changed: an empty value takes an entry away, empty metadata all of them."""
    wanted = form.get("metadata", {})
    entries = {} if wanted == "" else {**body["metadata"], **_metadata(wanted)}
    return {**body, "metadata": {name: value for name, value in entries.items() if value != ""}}


def _metadata(wanted: Any) -> dict[str, str]:
    if not isinstance(wanted, dict) or not all(isinstance(value, str) for value in wanted.values()):
        raise RefusedError(400, "Invalid metadata", parameter="metadata")
    too_long = [
        name
        for name, value in wanted.items()
        if len(name) > METADATA_NAME_CHARS_MAX or len(value) > METADATA_VALUE_CHARS_MAX
    ]
    if too_long or len(wanted) > METADATA_ENTRIES_MAX:
        raise RefusedError(400, f"metadata beyond its limits: {too_long or len(wanted)}", parameter="metadata")
    return dict(wanted)


def _line(number: int, found: Body, form: Body) -> Body:
    amount = whole(form.get("amount"), "lines[amount]")
    period = form.get("period") or {}
    start = whole(period.get("start", str(found["created"])), "lines[period][start]")
    end = whole(period.get("end", str(found["created"])), "lines[period][end]")
    if start > end:
        raise RefusedError(400, "a period cannot end before it starts", parameter="lines[period]")
    return objects.line(
        number, found, amount, (start, end), {**form, "metadata": _metadata(form.get("metadata") or {})}
    )


def _limit(form: Body) -> int:
    limit = whole(form.get("limit", "10"), "limit")
    if not 1 <= limit <= 100:
        raise RefusedError(400, "This value must be between 1 and 100", parameter="limit")
    return limit


def _paged(url: str, data: list[Body], form: Body) -> Body:
    limit, start = _limit(form), 0
    if (after := form.get("starting_after")) is not None:
        place = next((place for place, body in enumerate(data) if body["id"] == after), None)
        if place is None:
            raise missing("object", after)
        start = place + 1
    return objects.page(url, data[start : start + limit], start + limit < len(data))
