"""Stripe's objects with the fields that its contract requires, and sums that the double works out by itself. Pure."""

from typing import Any

Body = dict[str, Any]

_KEPT_FOR_ITSELF = frozenset({"line_data"})


def customer(number: int, now: int, form: Body) -> Body:
    """A customer."""
    return {
        "id": f"cus_double{number:08d}",
        "object": "customer",
        "created": now,
        "livemode": False,
        "name": form.get("name") or None,
        "email": form.get("email") or None,
        "metadata": {},
    }


def invoice(number: int, now: int, form: Body) -> Body:
    """A draft invoice without lines."""
    body: Body = {
        "id": f"in_double{number:08d}",
        "object": "invoice",
        "created": now,
        "livemode": False,
        "customer": form["customer"],
        "currency": form.get("currency", "usd").lower(),
        "collection_method": form.get("collection_method", "charge_automatically"),
        "auto_advance": form.get("auto_advance") == "true",
        "description": form.get("description"),
        "due_date": now + 86_400 * int(form["days_until_due"]) if "days_until_due" in form else None,
        "metadata": {},
        "status": "draft",
        "number": form.get("number"),
        "attempt_count": 0,
        "attempted": False,
        "automatic_tax": {"enabled": False, "liability": None, "provider": None, "status": None},
        "default_tax_rates": [],
        "discounts": [],
        "issuer": {"type": "self"},
        "payment_settings": {"default_mandate": None, "payment_method_options": None, "payment_method_types": None},
        "period_start": now,
        "period_end": now,
        "pre_payment_credit_notes_amount": 0,
        "post_payment_credit_notes_amount": 0,
        "starting_balance": 0,
        "status_transitions": {
            "finalized_at": None,
            "marked_uncollectible_at": None,
            "paid_at": None,
            "voided_at": None,
        },
    }
    return with_sums({**body, "line_data": []})


def line(number: int, invoice_body: Body, amount: int, period: tuple[int, int], form: Body) -> Body:
    """A line of an invoice."""
    return {
        "id": f"il_double{number:08d}",
        "object": "line_item",
        "amount": amount,
        "currency": invoice_body["currency"],
        "description": form.get("description"),
        "discountable": True,
        "discounts": [],
        "invoice": invoice_body["id"],
        "livemode": False,
        "metadata": form.get("metadata") or {},
        "period": {"start": period[0], "end": period[1]},
        "subtotal": amount,
    }


def with_sums(body: Body) -> Body:
    """The invoice with every sum worked out from its lines, its credit notes and its payment."""
    lines = body["line_data"]
    total = sum(entry["amount"] for entry in lines)
    due = max(0, total - body["pre_payment_credit_notes_amount"])
    paid = due if body["status"] == "paid" else 0
    return {
        **body,
        "lines": page(f"/v1/invoices/{body['id']}/lines", lines[:10], len(lines) > 10),
        "subtotal": total,
        "total": total,
        "amount_due": due,
        "amount_paid": paid,
        "amount_paid_off_stripe": 0,
        "amount_overpaid": 0,
        "amount_remaining": due - paid,
        "amount_shipping": 0,
    }


def credit_note(number: int, now: int, invoice_body: Body, amount: int, form: Body) -> Body:
    """A credit note over `amount` minor units, before payment (the invoice shrinks) or after (money goes back)."""
    after = invoice_body["status"] == "paid"
    note_id = f"cn_double{number:08d}"
    entry: Body = {
        "id": f"cnli_double{number:08d}",
        "object": "credit_note_line_item",
        "amount": amount,
        "description": form.get("memo"),
        "discount_amount": 0,
        "discount_amounts": [],
        "livemode": False,
        "pretax_credit_amounts": [],
        "tax_rates": [],
        "taxes": None,
        "type": "custom_line_item",
    }
    return {
        "id": note_id,
        "object": "credit_note",
        "amount": amount,
        "amount_shipping": 0,
        "created": now,
        "currency": invoice_body["currency"],
        "customer": invoice_body["customer"],
        "discount_amount": 0,
        "discount_amounts": [],
        "invoice": invoice_body["id"],
        "lines": page(f"/v1/credit_notes/{note_id}/lines", [entry], False),
        "livemode": False,
        "memo": form.get("memo"),
        "metadata": form.get("metadata") or {},
        "number": f"{invoice_body['number']}-CN-{number:02d}",
        "out_of_band_amount": int(form["out_of_band_amount"]) if "out_of_band_amount" in form else None,
        "pdf": f"https://double.invalid/{note_id}.pdf",
        "post_payment_amount": amount if after else 0,
        "pre_payment_amount": 0 if after else amount,
        "pretax_credit_amounts": [],
        "reason": form.get("reason"),
        "refunds": [],
        "status": "issued",
        "subtotal": amount,
        "total": amount,
        "type": "post_payment" if after else "pre_payment",
    }


def invoice_payment(number: int, now: int, invoice_body: Body) -> Body:
    """The payment of an invoice, through a payment intent."""
    return {
        "id": f"inpay_double{number:08d}",
        "object": "invoice_payment",
        "amount_paid": invoice_body["amount_due"],
        "amount_requested": invoice_body["amount_due"],
        "created": now,
        "currency": invoice_body["currency"],
        "invoice": invoice_body["id"],
        "is_default": True,
        "livemode": False,
        "payment": {"type": "payment_intent", "payment_intent": f"pi_double{number:08d}"},
        "status": "paid",
        "status_transitions": {"canceled_at": None, "paid_at": now},
    }


def dispute(number: int, now: int, payment: Body, status: str) -> Body:
    """A payer's bank asks for a payment back."""
    evidence = {"enhanced_eligibility": {}, "has_evidence": False, "past_due": False, "submission_count": 0}
    return {
        "id": f"du_double{number:08d}",
        "object": "dispute",
        "amount": payment["amount_paid"],
        "balance_transactions": [],
        "charge": f"ch_double{payment['id'][-8:]}",
        "created": now,
        "currency": payment["currency"],
        "enhanced_eligibility_types": [],
        "evidence": {"enhanced_evidence": {}},
        "evidence_details": {**evidence, "due_by": now + 7 * 86_400},
        "is_charge_refundable": False,
        "livemode": False,
        "metadata": {},
        "payment_intent": payment["payment"]["payment_intent"],
        "reason": "product_not_received",
        "status": status,
    }


def meter_event(number: int, now: int, form: Body) -> Body:
    """Usage for one of Stripe's billing meters."""
    return {
        "object": "billing.meter_event",
        "created": now,
        "event_name": form["event_name"],
        "identifier": form.get("identifier") or f"made-up-{number}",
        "livemode": False,
        "payload": form["payload"],
        "timestamp": int(form.get("timestamp", now)),
    }


def meter_event_adjustment(form: Body) -> Body:
    """A meter event that was cancelled."""
    return {
        "object": "billing.meter_event_adjustment",
        "cancel": {"identifier": form["cancel"]["identifier"]},
        "event_name": form["event_name"],
        "livemode": False,
        "status": "pending",
        "type": "cancel",
    }


def event(number: int, now: int, kind: str, thing: Body, endpoints: int, key: str | None) -> Body:
    """What happened to an object, with the object as it was then."""
    return {
        "id": f"evt_double{number:08d}",
        "object": "event",
        "created": now,
        "data": {"object": thing},
        "livemode": False,
        "pending_webhooks": endpoints,
        "request": {"id": "req_double", "idempotency_key": key},
        "type": kind,
    }


def webhook_endpoint(number: int, now: int, secret: str, form: Body) -> Body:
    """An address that hears of events, signed with its secret. Stripe shows the secret once, when it is made."""
    return {
        "id": f"we_double{number:08d}",
        "object": "webhook_endpoint",
        "created": now,
        "enabled_events": form.get("enabled_events") or ["*"],
        "livemode": False,
        "metadata": form.get("metadata") or {},
        "secret": secret,
        "status": "enabled",
        "url": form["url"],
    }


def shown(body: Body) -> Body:
    """The object as it is answered: what the double keeps for itself stays out."""
    return {name: value for name, value in body.items() if name not in _KEPT_FOR_ITSELF}


def page(url: str, data: list[Body], has_more: bool) -> Body:
    """A list as Stripe answers it."""
    return {"object": "list", "url": url, "has_more": has_more, "data": data}


def search_page(url: str, data: list[Body]) -> Body:
    """A search result as Stripe answers it."""
    return {"object": "search_result", "url": url, "has_more": False, "next_page": None, "data": data}
