"""Runs every check that the addresses at hand allow."""

import stripe
from clickhouse_connect.driver.client import Client
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from taximeter.reconcile.findings import Check, Finding, Report
from taximeter.reconcile.invoices import check_invoices, check_parked
from taximeter.reconcile.log_ends import log_ends
from taximeter.reconcile.rollups import check_rollups
from taximeter.reconcile.scope import Pace, Progress, Scope
from taximeter.reconcile.warehouse import (
    await_meter,
    check_conservation,
    check_identities,
    check_offsets,
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
from taximeter_schemas.settings import LogSettings
from taximeter_schemas.tenants import Tenant
from taximeter_sql import connect

_EVERYTHING, _PACE = Scope(), Pace()


def reconcile_all(
    settings: BillingSettings,
    scope: Scope = _EVERYTHING,
    pace: Pace = _PACE,
    *,
    repair: bool = False,
    progress: Progress = lambda _line: None,
) -> Report:
    """Check the log against the warehouse, raw rows against rollups and invoices, invoices against Stripe.

    With `repair`, rollups that drifted are rebuilt from the raw rows first and then compared again. Of one tenant, only what is
    the tenant's own is checked: the log and its producers belong to all.
    """
    client = connect(settings.clickhouse_url)
    try:
        report = reconcile_warehouse(client, settings, scope, pace, repair=repair, progress=progress)
        with operations.opened(settings) as book:
            invoices = [row for row in list_invoices(book) if _within(row, scope)]
            progress(f"{len(invoices)} invoices against the raw rows")
            report.checks.append(check_invoices(client, invoices, declared_tenants(book)))
            progress("invoices against Stripe")
            report.checks.append(check_stripe(settings, invoices))
            report.checks.append(check_parked(row for row in list_parked(book) if scope.tenant in (None, row.tenant)))
    finally:
        client.close()
    return report


def reconcile_warehouse(
    client: Client, settings: LogSettings, scope: Scope, pace: Pace, *, repair: bool, progress: Progress
) -> Report:
    """The laws that the log and the warehouse can show by themselves."""
    report = Report()
    if scope.tenant is None:
        progress("where the log ends")
        ends = log_ends(settings.kafka_bootstrap_servers)
        await_meter(client, ends, settings.log_id, pace, progress)
        progress("offsets: every message one row")
        report.checks.append(check_offsets(client, scope, ends, settings.log_id))
        progress("producers' running numbers")

        def catch_up() -> None:
            await_meter(client, log_ends(settings.kafka_bootstrap_servers), settings.log_id, pace, progress)

        report.checks.append(check_sequences(client, scope, pace, progress, catch_up))
    progress("identities: every event once")
    report.checks.append(check_identities(client, scope))
    progress("conservation by tenant and hour")
    conservation, report.tenants = check_conservation(client, scope)
    report.checks.append(conservation)
    rollups, drifts = check_rollups(client, scope, pace, progress)
    if repair and drifts:
        from taximeter.reconcile.repair import repair as repair_rollups  # it needs what the meter needs

        repairs = repair_rollups(client, drifts, scope, pace, progress)
        report.repaired = [f"{drift.rollup.name}: {drift.label}" for drift in repairs.repaired]
        report.unsettled = [f"{drift.rollup.name}: {drift.label}" for drift in repairs.unsettled]
        rollups, _left = check_rollups(client, scope, pace, progress)
    report.checks.extend(rollups)
    return report


def _within(row: InvoiceRow, scope: Scope) -> bool:
    """An invoice concerns the scope when it is the tenant's, and its month does not end before `since`."""
    month_after = f"{scope.since:%Y-%m}" if scope.since else ""
    return scope.tenant in (None, row.tenant) and row.period >= month_after


def check_stripe(settings: BillingSettings, invoices: list[InvoiceRow]) -> Check:
    """Every pushed invoice agrees with its twin in Stripe by total, currency and lines."""
    pushed = [row for row in invoices if row.stripe_invoice_id]
    findings: list[Finding] = []
    if pushed:
        client = stripe_client(settings.stripe_api_key, settings.stripe_url, live=settings.stripe_live)
        for row in pushed:
            subject = f"{row.number} ({row.stripe_invoice_id})"
            try:
                problems = differences(client, as_push(row), row.stripe_invoice_id or "", voided=row.status == "void")
            except stripe.StripeError as error:
                problems = [f"Stripe does not answer: {error.user_message or error}"]
            findings += [Finding(subject, problem, row.tenant) for problem in problems]
    unpushed = sum(row.status == "final" and not row.stripe_invoice_id for row in invoices)
    waiting = f", {unpushed} not pushed yet" if unpushed else ""
    return Check("invoice = Stripe", f"{len(pushed)} invoices by total, currency and lines{waiting}", tuple(findings))


def declared_tenants(book: Engine) -> dict[str, Tenant]:
    """The tenants that the book knows, by id."""
    with Session(book) as session:
        things = current(session)
    return {key: Tenant.model_validate(body) for (kind, key), body in things.items() if kind is ControlKind.TENANT}
