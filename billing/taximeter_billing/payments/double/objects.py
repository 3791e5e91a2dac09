"""Stripe's objects with the fields that its contract requires, and sums that the double works out by itself. Pure."""

from typing import Any

LIABLE = {"type": "self"}


def customer(number: int, now: int, form: dict[str, Any]) -> dict[str, Any]:
    """A customer."""
    return {
        "id": f"cus_double{number:08d}",
        "object": "customer",
        "created": now,
        "livemode": False,
        "name": form.get("name"),
        "email": form.get("email"),
        "metadata": form.get("metadata") or {},
    }


def invoice(number: int, now: int, form: dict[str, Any]) -> dict[str, Any]:
    """A draft invoice without lines."""
    body: dict[str, Any] = {
        "id": f"in_double{number:08d}",
        "object": "invoice",
        "created": now,
        "livemode": False,
        "customer": form["customer"],
        "currency": form.get("currency", "usd").lower(),
        "collection_method": form.get("collection_method", "charge_automatically"),
        "auto_advance": form.get("auto_advance") == "true",
        "description": form.get("description"),
        "metadata": form.get("metadata") or {},
        "status": "draft",
        "number": None,
        "attempt_count": 0,
        "attempted": False,
        "automatic_tax": {"enabled": False, "liability": None, "provider": None, "status": None},
        "default_tax_rates": [],
        "discounts": [],
        "issuer": LIABLE,
        "payment_settings": {"default_mandate": None, "payment_method_options": None, "payment_method_types": None},
        "period_start": now,
        "period_end": now,
        "starting_balance": 0,
        "status_transitions": {
            "finalized_at": None,
            "marked_uncollectible_at": None,
            "paid_at": None,
            "voided_at": None,
        },
    }
    return with_sums({**body, "line_data": []})


def line(number: int, invoice_body: dict[str, Any], form: dict[str, Any]) -> dict[str, Any]:
    """A line of an invoice. Raises ValueError when the amount is not a whole number."""
    amount = int(form.get("amount", "0"))
    period = form.get("period") or {"start": invoice_body["created"], "end": invoice_body["created"]}
    return {
        "id": f"il_double{number:08d}",
        "object": "line_item",
        "amount": amount,
        "currency": invoice_body["currency"],
        "description": form.get("description"),
        "discountable": True,
        "discounts": [],
        "livemode": False,
        "metadata": form.get("metadata") or {},
        "period": {"start": int(period["start"]), "end": int(period["end"])},
        "subtotal": amount,
    }


def with_sums(body: dict[str, Any]) -> dict[str, Any]:
    """The invoice with every sum worked out from its lines."""
    lines = body["line_data"]
    total = sum(entry["amount"] for entry in lines)
    paid = total if body["status"] == "paid" else 0
    return {
        **body,
        "lines": page(f"/v1/invoices/{body['id']}/lines", lines[:10], len(lines) > 10),
        "subtotal": total,
        "total": total,
        "amount_due": max(0, total),
        "amount_paid": paid,
        "amount_paid_off_stripe": 0,
        "amount_overpaid": 0,
        "amount_remaining": max(0, total) - paid,
        "amount_shipping": 0,
        "post_payment_credit_notes_amount": 0,
        "pre_payment_credit_notes_amount": 0,
    }


def shown(body: dict[str, Any]) -> dict[str, Any]:
    """The object as it is answered: what the double keeps for itself stays out."""
    return {name: value for name, value in body.items() if name != "line_data"}


def page(url: str, data: list[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """A list as Stripe answers it."""
    return {"object": "list", "url": url, "has_more": has_more, "data": data}


def search_page(url: str, data: list[dict[str, Any]]) -> dict[str, Any]:
    """A search result as Stripe answers it."""
    return {"object": "search_result", "url": url, "has_more": False, "next_page": None, "data": data}
