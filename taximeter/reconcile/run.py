"""Runs every check that the addresses at hand allow."""

import stripe
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from taximeter.reconcile.findings import Check, Finding, Report
from taximeter.reconcile.invoices import check_invoices, check_parked
from taximeter.reconcile.log_ends import log_ends
from taximeter.reconcile.warehouse import (
    check_conservation,
    check_identities,
    check_offsets,
    check_rollups,
    check_sequences,
)
from taximeter_billing import operations
from taximeter_billing.book import InvoiceRow
from taximeter_billing.closing import list_invoices, list_parked
from taximeter_billing.declarations.applying import current
from taximeter_billing.payments.push import stripe_client
from taximeter_billing.payments.reconcile import differences
from taximeter_billing.pushing import as_push
from taximeter_billing.settings import BillingSettings
from taximeter_schemas.control import ControlKind
from taximeter_schemas.tenants import Tenant
from taximeter_sql import connect


def reconcile_all(settings: BillingSettings) -> Report:
    """Check the log against the warehouse, raw rows against rollups and invoices, invoices against Stripe."""
    report = Report()
    client = connect(settings.clickhouse_url)
    try:
        ends = log_ends(settings.kafka_bootstrap_servers)
        report.checks.append(check_offsets(client, ends, settings.log_id))
        report.checks.append(check_identities(client))
        report.checks.append(check_sequences(client))
        conservation, report.tenants = check_conservation(client)
        report.checks.append(conservation)
        report.checks.extend(check_rollups(client))
        with operations.opened(settings) as book:
            invoices = list_invoices(book)
            report.checks.append(check_invoices(client, invoices, _tenants(book)))
            report.checks.append(check_stripe(settings, invoices))
            report.checks.append(check_parked(list_parked(book)))
    finally:
        client.close()
    return report


def check_stripe(settings: BillingSettings, invoices: list[InvoiceRow]) -> Check:
    """Every pushed invoice agrees with its twin in Stripe by total, currency and lines."""
    pushed = [row for row in invoices if row.stripe_invoice_id]
    findings: list[Finding] = []
    if pushed:
        client = stripe_client(settings.stripe_api_key, settings.stripe_url, live=settings.stripe_live)
        for row in pushed:
            subject = f"{row.number} ({row.stripe_invoice_id})"
            try:
                problems = differences(client, as_push(row), row.stripe_invoice_id or "")
            except stripe.StripeError as error:
                problems = [f"Stripe does not answer: {error.user_message or error}"]
            findings += [Finding(subject, problem, row.tenant) for problem in problems]
    unpushed = sum(row.status == "final" and not row.stripe_invoice_id for row in invoices)
    waiting = f", {unpushed} not pushed yet" if unpushed else ""
    return Check("invoice = Stripe", f"{len(pushed)} invoices by total, currency and lines{waiting}", tuple(findings))


def _tenants(book: Engine) -> dict[str, Tenant]:
    with Session(book) as session:
        things = current(session)
    return {key: Tenant.model_validate(body) for (kind, key), body in things.items() if kind is ControlKind.TENANT}
