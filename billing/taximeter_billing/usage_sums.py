"""Usage added up in ClickHouse: one sum for all events of a tenant that have in common whatever chooses a price.

Prices are linear in quantities, so what a price makes of a sum is exactly what it makes of the events one by one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clickhouse_connect.driver.client import Client

from taximeter_billing.domain.usage import UsageRow
from taximeter_billing.warehouse import TenantSpan
from taximeter_schemas.rate_cards import Price, RateCard
from taximeter_sql import query

SPANS_A_QUERY = 1_000
"""A server takes at most 128 KiB for one parameter of a query: so many tenants."""

FOLDED_BYTES_MAX = 400 << 20
"""Uses are gathered by block in ClickHouse's memory up to this size, and on its disk beyond."""

READS = ("gpu", "cpu", "disk", "provider")
WRITES = ("5m", "1h")


@dataclass(frozen=True, slots=True)
class UsageSum:
    """Events of one tenant and span. `sample` has what they have in common, the first one's time, one's id, and as its uncached
    input the length of one's input, which finds the context band.

    `exact` ones have blocks that explain their counts, read from `tier`; `cell` is their number in ClickHouse, `hit` and `filled`
    are tokens of those blocks and `block_uses` the blocks. `classes`: units by class, in the order of the query's columns.
    """

    sample: UsageRow
    exact: bool
    tier: str
    segment: int
    cell: int
    hit: int
    filled: int
    block_uses: int
    events: int
    list_pico: int
    metered_pico: int
    classes: Sequence[int]

    def quantities(self, price: Price) -> dict[str, int]:
        """What was used by class, as `quantities_of` has it for one event."""
        used = {
            "uncached_input": self.classes[0],
            **{f"cache_read_{tier}": tokens for tier, tokens in zip(READS, self.classes[1:5], strict=True)},
            **{f"cache_write_{lifetime}": tokens for lifetime, tokens in zip(WRITES, self.classes[5:7], strict=True)},
            "output": self.classes[7] - self.classes[8],
            "reasoning": self.classes[8],
            "request": self.classes[9],
        }
        beside = {
            "search_unit": self.classes[10],
            "gpu_microsecond": self.classes[11],
            "adapter_hour": self.classes[12],
        }
        return used | {name: units for name, units in beside.items() if getattr(price, name)}


def summed_usage(
    client: Client,
    spans: Sequence[TenantSpan],
    cards: Sequence[RateCard],
    cuts: Mapping[str, Sequence[int]] | None = None,
) -> Iterator[UsageSum]:
    """Sums of the usage of tenants, each in its own span, told apart by the context bands of these cards, and by `cuts` (by
    tenant, "" for all that are not named: moments in microseconds since the epoch, rising)."""
    # The first stands for tenants whose span is not cut.
    cut = {"": (), **(cuts or {})}
    parameters = {"cut_tenants": list(cut), "cuts": [list(moments) for moments in cut.values()]}
    for first in range(0, len(spans), SPANS_A_QUERY):
        part = spans[first : first + SPANS_A_QUERY]
        for row in folded_rows(client, "billing_fold_usage", part, cards, parameters):
            yield _sum(row)


def folded_rows(
    client: Client,
    name: str,
    spans: Sequence[TenantSpan],
    cards: Sequence[RateCard],
    parameters: Mapping[str, Any],
    over: str = "",
) -> Iterator[Sequence[Any]]:
    """The rows of a query over billing_fold_rows, and over the query `over` of these, block by block."""
    between = f",\nepochs AS (\n{query(over)})" if over else ""
    statement = f"WITH folded AS (\n{query('billing_fold_rows')}){between}\n{query(name)}"
    read = {
        "tenants": [span.tenant for span in spans],
        "starts": [span.start for span in spans],
        "ends": [span.end for span in spans],
        "untils": [span.until for span in spans],
        "lengths": sorted({band.input_over for card in cards for price in card.prices for band in price.bands}),
    }
    settings = {"max_bytes_before_external_group_by": FOLDED_BYTES_MAX}
    with client.query_row_block_stream(statement, parameters={**read, **parameters}, settings=settings) as blocks:
        for block in blocks:
            yield from block


def _sum(row: Sequence[Any]) -> UsageSum:
    tenant, card, feature, model, adapter, operation, service_tier, region, pool, exact, tier = row[:11]
    segment, cell, length, event, moment, hit, filled, block_uses, events, listed, metered = row[11:22]
    sample = UsageRow(
        tenant=tenant, feature=feature, model=model, adapter=adapter, operation=operation, service_tier=service_tier,
        rate_card=card, source="", event_id=event, time_us=moment, uncached_input=length, cache_read_gpu=0, cache_read_cpu=0,
        cache_read_disk=0, cache_read_provider=0, cache_write_5m=0, cache_write_1h=0, output=0, pool=pool, block_size=0,
        hit_blocks=0, blocks=(), list_pico=0, metered_pico=0, region=region,
    )  # fmt: skip
    return UsageSum(
        sample, bool(exact), tier, segment, cell, hit, filled, block_uses, events, listed, metered, row[22:]
    )
