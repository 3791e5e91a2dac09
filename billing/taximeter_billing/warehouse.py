"""What billing reads from ClickHouse: rated events of a period, their order-independent hashes, and what stands in the way.

Many tenants are read by one query, each in its own span of time. `until` leaves out rows that were inserted later, so that an
invoice can be derived again from the very rows that it was made from.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from clickhouse_connect.driver.client import Client

from taximeter_billing.domain.takeback import Correction
from taximeter_billing.domain.usage import UsageRow
from taximeter_sql import query

ANY_TIME = datetime(2200, 1, 1, tzinfo=UTC)
"""Stands for no limit on when a row was inserted."""

BEFORE_ANY = datetime(1970, 1, 1, tzinfo=UTC)
"""Stands for a moment before any row: what was made when none was there saw none of those that came since."""

TENANTS_MAX = 100
"""Tenants that one query names; their names travel in its address."""

Place = tuple[str, str, str]
"""Feature, model, rate card: an invoice line."""


@dataclass(frozen=True, slots=True)
class TenantSpan:
    """A tenant's usage in [start, end) of event time, as far as it was inserted until then."""

    tenant: str
    start: datetime
    end: datetime
    until: datetime = ANY_TIME


@dataclass(frozen=True, slots=True)
class EventSet:
    """A tenant's events: how many, a hash that does not depend on their order (also by line), and the newest row's insertion."""

    events: int = 0
    digest: int = 0
    lines: Mapping[Place, str] = field(default_factory=dict)
    newest: datetime | None = None

    @property
    def hash(self) -> str:
        """The hash as text."""
        return f"{self.digest:032x}"


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Events without a price, and hours in which the rollup differs from the raw rows."""

    unrated: int
    rollup_off: int


class UsageReader:
    """Usage of tenants, each in its own span."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def rows(self, spans: Sequence[TenantSpan]) -> Iterator[UsageRow]:
        """The rated events, tenant by tenant in the order given, in order of time, block by block."""
        for parameters in _parameters(spans):
            yield from self._rows({**parameters, "taken_back": 0, "corrected": []})

    def taken_back(self, spans: Sequence[TenantSpan], corrected: Collection[str]) -> Iterator[UsageRow]:
        """Of `rows`, those that their own line may not pay for: of reserved throughput, and with one of these event ids."""
        for parameters in _parameters(spans):
            yield from self._rows({**parameters, "taken_back": 1, "corrected": sorted(corrected)})

    def _rows(self, parameters: Mapping[str, Any]) -> Iterator[UsageRow]:
        with self.client.query_row_block_stream(query("billing_rows"), parameters=dict(parameters)) as blocks:
            for block in blocks:
                for row in block:
                    values = [*row[:21], tuple(row[21]), *row[22:]]
                    yield UsageRow(*values)

    def event_sets(self, spans: Sequence[TenantSpan]) -> dict[str, EventSet]:
        """The hash over identity, body and cost of each tenant's rated events; also of tenants that have none."""
        found = {span.tenant: EventSet() for span in spans}
        lines: dict[str, dict[Place, str]] = {span.tenant: {} for span in spans}
        for parameters in _parameters(spans):
            for row in self.client.query(query("billing_event_sets"), parameters=parameters).result_rows:
                tenant, feature, model, card, events, digest, newest = row
                so_far = found[tenant]
                lines[tenant][feature, model, card] = digest.rjust(32, "0")
                newest = newest.replace(tzinfo=UTC)
                found[tenant] = EventSet(
                    so_far.events + events,
                    so_far.digest ^ int(digest, 16),
                    lines[tenant],
                    max(newest, so_far.newest or newest),
                )
        return found

    def obstacles(self, spans: Sequence[TenantSpan]) -> dict[str, Obstacle]:
        """What stands in the way, by tenant; nothing does for one that is not in it."""
        found = {}
        for parameters in _parameters(spans):
            del parameters["untils"]
            for tenant, unrated, off in self.client.query(
                query("billing_obstacles"), parameters=parameters
            ).result_rows:
                found[tenant] = Obstacle(int(unrated), int(off))
        return found

    def shared_pools(self, start: datetime, end: datetime, until: datetime) -> list[list[str]]:
        """Tenants that used blocks of one cache pool in [start, end), for each such pool, whatever pool they belong to now."""
        parameters = {"start": start, "end": end, "until": until}
        return [row[0] for row in self.client.query(query("billing_shared_pools"), parameters=parameters).result_rows]

    def used_months(self, tenants: Sequence[str], zone: str, start: datetime, end: datetime) -> dict[str, list[str]]:
        """The months ("2026-11") of [start, end) in which each tenant used something, by the calendar of a time zone. One may be
        too many, where a month begins within an hour."""
        return self._months("billing_used_months", tenants, {"zone": zone, "start": start, "end": end})

    def late_block_months(
        self, tenants: Sequence[str], cards: Sequence[str], start: datetime, end: datetime
    ) -> dict[str, list[str]]:
        """The months in UTC in which blocks of usage of [start, end), rated by these versions of cards, may have lain in cache,
        and that were over before that usage was stored."""
        return self._months("billing_late_blocks", tenants, {"cards": cards, "start": start, "end": end})

    def tenants_with_usage(self, start: datetime, end: datetime) -> list[str]:
        """Whoever used something in [start, end), declared or not."""
        rows = self.client.query(
            query("billing_tenants_with_usage"), parameters={"start": start, "end": end}
        ).result_rows
        return [tenant for (tenant,) in rows]

    def _months(self, name: str, tenants: Sequence[str], parameters: dict[str, object]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for first in range(0, len(tenants), TENANTS_MAX):
            part = {"tenants": tenants[first : first + TENANTS_MAX], **parameters}
            rows = self.client.query(query(name), parameters=part).result_rows
            found |= {tenant: list(months) for tenant, months in rows}
        return found

    def corrections(self, spans: Sequence[TenantSpan]) -> list[Correction]:
        """Events that void or amend another."""
        return [
            Correction(tenant, source, event, corrects, bool(amends))
            for parameters in _parameters(spans)
            for tenant, source, event, corrects, amends in self.client.query(
                query("billing_corrections"), parameters=parameters
            ).result_rows
        ]


def _parameters(spans: Sequence[TenantSpan]) -> Iterator[dict[str, list[str] | list[datetime]]]:
    for first in range(0, len(spans), TENANTS_MAX):
        part = spans[first : first + TENANTS_MAX]
        yield {
            "tenants": [span.tenant for span in part],
            "starts": [span.start for span in part],
            "ends": [span.end for span in part],
            "untils": [span.until for span in part],
        }
