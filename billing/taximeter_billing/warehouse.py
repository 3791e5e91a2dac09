"""What billing reads from ClickHouse: rated events of a period, their order-independent hash, and what stands in the way."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from clickhouse_connect.driver.client import Client

from taximeter_billing.domain.usage import UsageRow
from taximeter_sql import query


@dataclass(frozen=True, slots=True)
class EventSet:
    """A set of events: how many, and a hash that does not depend on their order."""

    events: int
    hash: str


@dataclass(frozen=True, slots=True)
class RawSums:
    """A tenant's raw rows against its rollup in a period; `differences` is 0 when they agree."""

    unrated: int
    rollup_off: int


class UsageReader:
    """Usage of a tenant in [start, end) of event time."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def rows(self, tenant: str, start: datetime, end: datetime) -> Iterator[UsageRow]:
        """The rated events, in order of time, block by block."""
        parameters = {"tenant": tenant, "start": start, "end": end}
        with self._client.query_row_block_stream(query("billing_rows"), parameters=parameters) as blocks:
            for block in blocks:
                for row in block:
                    values = [*row[:21], tuple(row[21]), *row[22:]]
                    yield UsageRow(*values)

    def event_set(self, tenants: list[str], starts: list[datetime], ends: list[datetime]) -> EventSet:
        """The hash over identity, body and cost of all rated events of those tenants, each in its own span."""
        parameters = {"tenants": tenants, "starts": starts, "ends": ends}
        events, digest = self._client.query(query("billing_event_set"), parameters=parameters).result_rows[0]
        return EventSet(int(events), str(digest))

    def obstacles(self, tenant: str, start: datetime, end: datetime) -> RawSums:
        """How many events have no price, and by how many rows or pico-units the hourly rollup differs."""
        parameters = {"tenant": tenant, "start": start, "end": end}
        unrated, off = self._client.query(query("billing_obstacles"), parameters=parameters).result_rows[0]
        return RawSums(int(unrated), int(off))
