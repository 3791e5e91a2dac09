"""Takes usage back from Stripe's billing meters that a later event voids or amends.

Stripe cancels a meter event by its identifier for 24 hours after it received it. What it refuses to cancel stands too high there,
and is noted and told. A journal beside the cursor holds what became of each, so nothing is asked for twice or forgotten; usage
that is voided before it was sent is noted there too, and never sent.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import stripe

from taximeter_billing.payments.errors import StripeRefusedError
from taximeter_billing.payments.keys import IdempotencyKeys
from taximeter_billing.payments.meter_events import MeteredUsage, identifier

HTTP_FAILED = 500

Outcome = Literal["not sent", "cancelled", "stands"]


@dataclass(frozen=True, slots=True)
class TakenBack:
    """What became of one event that was taken back: `value` is what it counted, `reason` why Stripe still counts it."""

    event_id: str
    value: int
    outcome: Outcome
    reason: str = ""


class Journal:
    """A file with a line for each event that was taken back; a line that a crash cut off counts as not written."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._known = {one.event_id: one for one in self._read()}

    def __contains__(self, event_id: str) -> bool:
        return event_id in self._known

    @property
    def standing(self) -> list[TakenBack]:
        """What stands too high."""
        return [one for one in self._known.values() if one.outcome == "stands"]

    def note(self, one: TakenBack) -> None:
        """Add a line, on disk when this returns; what is known already is left as it is."""
        if one.event_id in self._known:
            return
        with self.file.open("a") as file:
            file.write("\n" + json.dumps(asdict(one)))  # a line of its own, also behind one that was cut off
            file.flush()
            os.fsync(file.fileno())
        self._known[one.event_id] = one

    def _read(self) -> Iterable[TakenBack]:
        for line in self.file.read_text().splitlines() if self.file.exists() else ():
            try:
                yield TakenBack(**json.loads(line))
            except ValueError:
                continue


def cancel(
    client: stripe.StripeClient, usage: Iterable[MeteredUsage], journal: Journal, *, stream: bool = False
) -> list[TakenBack]:
    """Cancel what was sent and is taken back since; returns what became of each that the journal did not know.

    Raises StripeRefusedError where Stripe cannot be asked; what was done by then is noted.
    """
    found = []
    for one in usage:
        if one.event_id in journal:
            continue
        try:
            _cancel(client, one, stream)
        except stripe.InvalidRequestError as error:
            taken = TakenBack(one.event_id, one.value, "stands", str(error.user_message or error))
        except stripe.StripeError as error:
            raise StripeRefusedError(f"cancelling meter event {one.event_id}: {error}") from error
        else:
            taken = TakenBack(one.event_id, one.value, "cancelled")
        journal.note(taken)
        found.append(taken)
    return found


def _cancel(client: stripe.StripeClient, one: MeteredUsage, stream: bool) -> None:
    params: Any = {"event_name": one.meter, "type": "cancel", "cancel": {"identifier": identifier(one.event_id)}}
    service = client.v2.billing.meter_event_adjustments if stream else client.v1.billing.meter_event_adjustments
    # A key of its own, so that asking again after a lost answer is no second cancellation, which Stripe would refuse.
    keys = IdempotencyKeys(one.event_id)
    try:
        service.create(params, keys.options("cancel", params))
    except stripe.APIError as error:
        if (error.http_status or 0) < HTTP_FAILED:
            raise
        # A failure is kept under its key for a day, and for no longer can the event be cancelled: once more, under another one.
        keys.generation = 1
        service.create(params, keys.options("cancel", params))
