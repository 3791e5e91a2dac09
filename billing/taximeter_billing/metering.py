"""Usage of a month into Stripe's billing meters: from the warehouse, in the order in which it was inserted.

The order is one to which rows are only added, so that a place in it says what was sent: usage that comes late is sent when it
comes. Rows that were inserted in the last minutes wait for the next time, since another meter may still be writing beside them.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import stripe

from taximeter_billing.payments.customers import customer_of
from taximeter_billing.payments.errors import StripeRefusedError
from taximeter_billing.payments.meter_events import Cursor, MeteredUsage, send_v1, send_v2
from taximeter_billing.pushing import payments_client
from taximeter_billing.settings import BillingSettings
from taximeter_billing.warehouse import UsageReader
from taximeter_schemas.periods import billing_month
from taximeter_sql import query

Count = Literal["input", "output", "tokens", "requests"]

SETTLE_MINUTES = 5


def cursor_file(settings: BillingSettings, period: str, meter: str, count: Count, tenant: str | None) -> Path:
    """Where it is noted how far this export came. An export for another meter, month, count or tenant has its own."""
    name = "-".join((period, meter, count, tenant or "all tenants")).replace("/", "_")
    return settings.state_dir / "billing" / f"meter-events {name}.cursor"


def export_usage(
    reader: UsageReader,
    settings: BillingSettings,
    period: str,
    meter: str,
    count: Count,
    now: datetime,
    *,
    tenant: str | None = None,
    stream: bool = False,
    settle_minutes: int = SETTLE_MINUTES,
) -> int:
    """Send the month's usage (UTC) that was not sent yet; returns how many events. Doing it again sends nothing twice.

    Raises StripeRefusedError, PaymentError without a key, PeriodError for what is no month.
    """
    billing_month(period, "UTC")
    client = payments_client(settings)
    file = cursor_file(settings, period, meter, count, tenant)
    file.parent.mkdir(parents=True, exist_ok=True)
    cursor = Cursor(file)
    settled = now - timedelta(minutes=settle_minutes)
    usage = _usage(reader, client, period, meter, count, tenant, settled, cursor.read())
    return send_v2(client, usage, cursor, settings.stripe_url) if stream else send_v1(client, usage, cursor)


def _usage(
    reader: UsageReader,
    client: stripe.StripeClient,
    period: str,
    meter: str,
    count: Count,
    tenant: str | None,
    settled: datetime,
    after: str,
) -> Iterator[MeteredUsage]:
    month = billing_month(period, "UTC")
    at, log, partition, offset = json.loads(after) if after else (-1, "", 0, 0)
    parameters = {
        "tenant": tenant or "", "start": month.start, "end": month.end, "settled": settled, "count": count,
        "after_ms": at, "after_log": log, "after_partition": partition, "after_offset": offset,
    }  # fmt: skip
    customers: dict[str, str] = {}
    with reader.client.query_row_block_stream(query("billing_meter_events"), parameters=parameters) as blocks:
        for block in blocks:
            for owner, source, event, moment, _input, value, *position in block:
                if owner not in customers:
                    customers[owner] = _customer(client, owner)
                # An id tells events apart within a tenant and a source; a meter's identifiers are the whole account's.
                name = f"{owner}/{source}/{event}"
                place = json.dumps(position)
                yield MeteredUsage(name, meter, customers[owner], value, moment.replace(tzinfo=UTC), place)


def _customer(client: stripe.StripeClient, tenant: str) -> str:
    try:
        return customer_of(client, tenant).id
    except stripe.StripeError as error:
        raise StripeRefusedError(f"customer of tenant {tenant}: {error.user_message or error}") from error
