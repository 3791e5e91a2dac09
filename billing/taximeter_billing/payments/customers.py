"""A tenant's customer in Stripe: found by its metadata, or created with nothing else, so that creating it twice is impossible."""

from typing import Any

import stripe

from taximeter_billing.payments.invoices import PushInvoice
from taximeter_billing.payments.keys import IdempotencyKeys, quoted
from taximeter_billing.payments.metadata import noted


def find_or_create_customer(client: stripe.StripeClient, invoice: PushInvoice, generation: int) -> stripe.Customer:
    """The customer whose metadata `taximeter_tenant` is the invoice's tenant. Raises stripe.StripeError.

    It is created with the metadata alone, so the request and its key are the same whatever the tenant is called today. Name and
    e-mail are filled in where they are empty, and never overwritten: someone may have corrected them in Stripe.
    """
    found = customer_of(client, invoice.tenant, generation)
    wanted: Any = {}
    if not found.name:
        wanted["name"] = invoice.tenant_name or invoice.tenant
    if not found.email and invoice.email:
        wanted["email"] = invoice.email
    # Setting fields to fixed values needs no key of ours: doing it twice is doing it once.
    return client.v1.customers.update(found.id, wanted) if wanted else found


def customer_of(client: stripe.StripeClient, tenant: str, generation: int = 0) -> stripe.Customer:
    """The tenant's customer, found or created with its metadata alone. Raises stripe.StripeError."""
    found = _find(client, tenant)
    if found is not None:
        return found
    params: Any = {"metadata": {"taximeter_tenant": tenant}}
    keys = IdempotencyKeys(f"customer-{tenant}", generation)
    created = client.v1.customers.create(params, keys.options("create", params))
    # A kept answer shows the customer as it was born.
    return client.v1.customers.retrieve(created.id)


def _find(client: stripe.StripeClient, tenant: str) -> stripe.Customer | None:
    """By search, which lags; then among the newest, which does not. The oldest wins, so everyone chooses the same."""
    query = f"metadata['taximeter_tenant']:'{quoted(tenant)}'"
    searched = list(client.v1.customers.search({"query": query, "limit": 100}).auto_paging_iter())
    if not searched:
        newest = client.v1.customers.list({"limit": 100}).data
        searched = [one for one in newest if noted(one, "taximeter_tenant") == tenant]
    if not searched:
        return None
    oldest = min(searched, key=lambda one: (one.created, one.id))
    return client.v1.customers.retrieve(oldest.id)
