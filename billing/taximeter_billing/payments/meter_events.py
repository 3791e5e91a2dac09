"""Sends usage to Stripe's billing meters, one event each: by v1, or in batches by the v2 stream.

An event's identifier is its own identity, so whatever is sent twice counts once (Stripe remembers identifiers for at least a
day). How far the export came is noted in a cursor file after each batch, and one that was cut off goes on there; between the two,
a batch may be sent twice, which its identifiers make harmless.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import stripe

from taximeter_billing.payments.errors import StripeRefusedError

IDENTIFIER_CHARS_MAX = 100
BATCH_EVENTS = 100
"""How many events the v2 stream takes in one request."""


@dataclass(frozen=True, slots=True)
class MeteredUsage:
    """One usage event for a meter. `value` is a whole number of what the meter counts; `customer` is Stripe's id.

    `event_id` tells the event from all others of the account. `position`: where it stands in the order of the export.
    `taken_back`: a later event voids or amends it.
    """

    event_id: str
    meter: str
    customer: str
    value: int
    at: datetime
    position: str
    taken_back: bool = False


def identifier(event_id: str) -> str:
    """The event's id, or the SHA-256 of one that is too long for Stripe."""
    return event_id if len(event_id) <= IDENTIFIER_CHARS_MAX else sha256(event_id.encode()).hexdigest()


class Cursor:
    """The position of the last event that Stripe has, in a file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self) -> str:
        """The position; "" where nothing was sent."""
        return self._file.read_text() if self._file.exists() else ""

    def write(self, position: str) -> None:
        """Note it, in one step: the old position or the new one, whatever happens."""
        fresh = self._file.with_suffix(".new")
        with fresh.open("w") as file:
            file.write(position)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._file)


def send_v1(client: stripe.StripeClient, usage: Iterable[MeteredUsage], cursor: Cursor) -> int:
    """Send one by one; `usage` is what lies behind the cursor, in order. Returns how many were sent.

    Raises StripeRefusedError where Stripe takes one not; the cursor then stands before it.
    """
    sent = 0
    for one in usage:
        try:
            client.v1.billing.meter_events.create(_v1(one))
        except stripe.InvalidRequestError as error:
            if error.param != "identifier" or "already exists" not in str(error):
                raise StripeRefusedError(f"meter event {one.event_id}: {error}") from error
        except stripe.StripeError as error:
            raise StripeRefusedError(f"meter event {one.event_id}: {error}") from error
        sent += 1
        cursor.write(one.position)
    return sent


def send_v2(client: stripe.StripeClient, usage: Iterable[MeteredUsage], cursor: Cursor, url: str = "") -> int:
    """The same by the v2 stream, BATCH_EVENTS at a time, under a session whose token lasts 15 minutes.

    `url`: another address than Stripe's. Raises StripeRefusedError.
    """
    sent = 0
    stream = _Stream(client, url)
    for batch in _batches(usage):
        try:
            stream.send([_v2(one) for one in batch])
        except stripe.StripeError as error:
            raise StripeRefusedError(f"{len(batch)} meter events from {batch[0].event_id}: {error}") from error
        sent += len(batch)
        cursor.write(batch[-1].position)
    return sent


class _Stream:
    """The stream under the session that is open; a session that has expired is opened anew, once for each batch."""

    def __init__(self, client: stripe.StripeClient, url: str) -> None:
        self._client = client
        self._addresses: Any = {"api": url, "meter_events": url} if url else {}
        self._session: stripe.StripeClient | None = None

    def send(self, events: list[Any]) -> None:
        """Send a batch."""
        try:
            self._open().v2.billing.meter_event_stream.create({"events": events})
        except (stripe.AuthenticationError, stripe.TemporarySessionExpiredError):
            self._session = None
            self._open().v2.billing.meter_event_stream.create({"events": events})

    def _open(self) -> stripe.StripeClient:
        if self._session is None:
            session = self._client.v2.billing.meter_event_session.create()
            self._session = stripe.StripeClient(session.authentication_token, base_addresses=self._addresses)
        return self._session


def _batches(usage: Iterable[MeteredUsage]) -> Iterator[list[MeteredUsage]]:
    left = iter(usage)
    while batch := list(islice(left, BATCH_EVENTS)):
        yield batch


def _v1(one: MeteredUsage) -> Any:
    return {
        "event_name": one.meter,
        "identifier": identifier(one.event_id),
        "payload": {"stripe_customer_id": one.customer, "value": str(one.value)},
        "timestamp": int(one.at.timestamp()),
    }


def _v2(one: MeteredUsage) -> Any:
    return {**_v1(one), "timestamp": one.at.isoformat()}
