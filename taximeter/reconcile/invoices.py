"""The checks that need the book: raw usage against invoices, and invoices against Stripe."""

import json
from collections.abc import Iterable
from datetime import datetime

from clickhouse_connect.driver.client import Client

from taximeter.reconcile.findings import Check, Finding
from taximeter_billing.book import InvoiceRow, ParkedRow
from taximeter_billing.parking import EVERY_PERIOD
from taximeter_billing.warehouse import ANY_TIME
from taximeter_schemas.money import format_pico
from taximeter_schemas.periods import billing_month
from taximeter_schemas.tenants import Tenant

_SUMS = """SELECT sum(toInt128(list_pico)) FROM usage_log
WHERE disposition = 'rated' AND tenant = {tenant:String} AND inserted_at <= {until:DateTime64(3, 'UTC')}
    AND time >= {start:DateTime64(6, 'UTC')} AND time < {end:DateTime64(6, 'UTC')}"""


def check_invoices(client: Client, invoices: Iterable[InvoiceRow], tenants: dict[str, Tenant]) -> Check:
    """An invoice's list total is the raw rows' own, and its lines sum to its totals, exactly.

    A final invoice is held against the rows that were there when it was made; what came later is the next one's. A voided one
    is held against nothing.
    """
    findings = []
    count = 0
    for row in invoices:
        if row.status == "void":
            continue
        count += 1
        subject = f"{row.number or 'draft'} ({row.tenant}, {row.period})"
        period = billing_month(row.period, tenants[row.tenant].time_zone)
        parameters = {"tenant": row.tenant, "start": period.start, "end": period.end, "until": _until(row)}
        list_pico = client.query(_SUMS, parameters=parameters).result_rows[0][0]
        if list_pico != row.list_pico:
            off = format_pico(list_pico - row.list_pico, row.currency)
            findings.append(Finding(subject, f"the raw rows hold {off} more at list price", row.tenant))
        if row.list_pico - row.savings_pico + row.adjustments_pico != row.net_pico:
            findings.append(Finding(subject, "list less savings and adjustments is not net", row.tenant))
    return Check("raw = invoice", f"{count} invoices against the raw rows, to 1e-12", tuple(findings))


def _until(row: InvoiceRow) -> datetime:
    """When the newest row that a final invoice was made from was inserted; a draft is held against all there is."""
    stated = json.loads(row.document)["inputs"].get("inserted_until") if row.status == "final" else None
    return datetime.fromisoformat(stated) if stated else ANY_TIME


def check_parked(parked: Iterable[ParkedRow]) -> Check:
    """No tenant's period is parked. What the reconciliation job parked itself it finds again under the law that is broken."""
    findings = tuple(
        Finding(f"{row.tenant}, {row.period}", f"parked: {row.reason}", row.tenant)
        for row in parked
        if row.period != EVERY_PERIOD
    )
    return Check("nothing hidden", "tenants whose invoice is parked", findings)
