"""Usage of a month into Stripe's billing meters: from the warehouse, in the order in which it was inserted.

The order is one to which rows are only added, so that a place in it says what was sent: usage that comes late is sent when it
comes, and what a later event voids or amends is cancelled there, or told to stand too high. Rows that were inserted in the last
minutes wait for the next time, since another meter may still be writing beside them.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import stripe

from taximeter_billing.payments.customers import customer_of
from taximeter_billing.payments.errors import StripeRefusedError
from taximeter_billing.payments.meter_corrections import Journal, TakenBack, cancel
from taximeter_billing.payments.meter_events import Cursor, MeteredUsage, send_v1, send_v2
from taximeter_billing.pushing import payments_client
from taximeter_billing.settings import BillingSettings
from taximeter_billing.warehouse import UsageReader
from taximeter_schemas.periods import billing_month
from taximeter_sql import query

Count = Literal["input", "output", "tokens", "requests"]

SETTLE_MINUTES = 5


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export did: events sent, and of those that later ones void or amend what it cancelled and what it could not.

    `standing`: all that stands too high since the first export; `journal` is the file that says so.
    """

    sent: int
    cancelled: list[TakenBack]
    refused: list[TakenBack]
    standing: list[TakenBack]
    journal: Path


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
) -> Exported:
    """Send the month's usage (UTC) that was not sent yet, and take back what was voided since. Doing it again does nothing twice.

    Raises StripeRefusedError, PaymentError without a key, PeriodError for what is no month.
    """
    billing_month(period, "UTC")
    client = payments_client(settings)
    file = cursor_file(settings, period, meter, count, tenant)
    file.parent.mkdir(parents=True, exist_ok=True)
    cursor, journal = Cursor(file), Journal(file.with_suffix(".taken-back"))
    settled = now - timedelta(minutes=settle_minutes)

    def usage(sent: bool) -> Iterator[MeteredUsage]:
        return _usage(reader, client, period, meter, count, tenant, settled, cursor.read(), sent)

    fresh = _not_voided(usage(False), journal)
    sent = send_v2(client, fresh, cursor, settings.stripe_url) if stream else send_v1(client, fresh, cursor)
    taken = cancel(client, usage(True), journal, stream=stream) if cursor.read() else []
    cancelled = [one for one in taken if one.outcome == "cancelled"]
    refused = [one for one in taken if one.outcome == "stands"]
    return Exported(sent, cancelled, refused, journal.standing, journal.file)


def _not_voided(usage: Iterable[MeteredUsage], journal: Journal) -> Iterator[MeteredUsage]:
    """What is to be sent. What is not is noted before the cursor passes it: it must never be cancelled either."""
    for one in usage:
        if one.taken_back:
            journal.note(TakenBack(one.event_id, one.value, "not sent"))
        else:
            yield one


def _usage(
    reader: UsageReader,
    client: stripe.StripeClient,
    period: str,
    meter: str,
    count: Count,
    tenant: str | None,
    settled: datetime,
    after: str,
    sent: bool,
) -> Iterator[MeteredUsage]:
    month = billing_month(period, "UTC")
    at, log, partition, offset = json.loads(after) if after else (-1, "", 0, 0)
    parameters = {
        "tenant": tenant or "", "start": month.start, "end": month.end, "settled": settled, "count": count,
        "sent": int(sent),
        "after_ms": at, "after_log": log, "after_partition": partition, "after_offset": offset,
    }  # fmt: skip
    customers: dict[str, str] = {}
    with reader.client.query_row_block_stream(query("billing_meter_events"), parameters=parameters) as blocks:
        for block in blocks:
            for owner, source, event, moment, _input, value, *position, taken_back in block:
                if owner not in customers:
                    customers[owner] = _customer(client, owner)
                # An id tells events apart within a tenant and a source; a meter's identifiers are the whole account's.
                name = f"{owner}/{source}/{event}"
                place = json.dumps(position)
                yield MeteredUsage(
                    name, meter, customers[owner], value, moment.replace(tzinfo=UTC), place, bool(taken_back)
                )


def _customer(client: stripe.StripeClient, tenant: str) -> str:
    try:
        return customer_of(client, tenant).id
    except stripe.StripeError as error:
        raise StripeRefusedError(f"customer of tenant {tenant}: {error.user_message or error}") from error
