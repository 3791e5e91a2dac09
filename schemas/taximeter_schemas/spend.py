"""Topic usage.spend.v1, key tenant: what one batch of the meter cost one tenant, folded by what budgets can name."""

from typing import Annotated

from pydantic import AwareDatetime, Field

from taximeter_schemas.budgets import Message
from taximeter_schemas.events import Tag

SPEND_SLOT_SECONDS = 900
"""Spend is folded into quarter hours of event time: every time zone's midnight lies on one."""


class SpendEntry(Message):
    """The metered cost of the events of one feature, model, API key, lease and quarter hour (UTC, seconds since the epoch).

    `api_key` is the key's id, where the meter knows it; without it the lease says which key's budgets count.
    """

    feature: Tag
    model: Tag
    api_key: str | None = None
    lease_id: str | None = None
    slot_start: int
    amount_pico: int
    events: Annotated[int, Field(ge=1)]


class SpendRecord(Message):
    """One tenant's share of a contiguous offset range of one partition of usage.events.v1: a batch of the meter, or a part of it.

    Log, partition and range identify the record: a reader that has seen `last_offset` of that partition ignores it. `log_id`
    names the life of the log, for offsets begin anew when a log that is kept in memory does.
    """

    tenant: Tag
    currency: str
    log_id: str = ""
    partition: Annotated[int, Field(ge=0)]
    first_offset: Annotated[int, Field(ge=0)]
    last_offset: Annotated[int, Field(ge=0)]
    entries: tuple[SpendEntry, ...]
    rated_at: AwareDatetime
