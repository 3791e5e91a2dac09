"""Settles a period for the tenants of one policy and currency: events in, each tenant's lines with its savings out. Pure."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from taximeter_billing.domain.invoice import LineUsage
from taximeter_billing.domain.savings import savings_for_period
from taximeter_billing.domain.usage import Skus, UsageRow, line_of
from taximeter_schemas.cache_policies import CachePolicy
from taximeter_schemas.cache_uses import CacheUse
from taximeter_schemas.rate_cards import RateCard


class SettlementError(ArithmeticError):
    """Two ways to add up the same usage disagree; nothing may be invoiced from it."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """Each tenant's lines, and how well the savings are known (exact, inferred, unattributed, in pico-units)."""

    lines: dict[str, list[LineUsage]]
    known: dict[str, int]
    provider_retained_pico: int


@dataclass(slots=True)
class _Sums:
    events: int = 0
    uncached_input: int = 0
    cache_read: int = 0
    cache_write: int = 0
    output: int = 0
    list_pico: int = 0
    metered_pico: int = 0


def settle_period(rows: Iterable[UsageRow], cards: list[RateCard], policy: CachePolicy, salt: str) -> Settlement:
    """Settle. Raises SettlementError when the savings engine's metered cost is not the events' own."""
    skus = Skus(cards)
    uses: list[CacheUse] = []
    sums: dict[tuple[str, str, str], _Sums] = defaultdict(_Sums)
    for row in rows:
        _add(sums[row.tenant, row.feature, row.model], row)
        uses.extend(skus.uses(row))
    result = savings_for_period(uses, skus.rates, policy, salt)
    savings: dict[tuple[str, str, str], int] = defaultdict(int)
    cached: dict[tuple[str, str, str], int] = defaultdict(int)
    for (tenant, sku), account in result.by_tenant_and_sku.items():
        place = (tenant, *line_of(sku))
        savings[place] += account.list_pico - account.charge_pico
        cached[place] += account.list_pico - account.metered_pico
    lines: dict[str, list[LineUsage]] = defaultdict(list)
    for place, total in sorted(sums.items()):
        if cached[place] != total.list_pico - total.metered_pico:
            off = cached[place] - (total.list_pico - total.metered_pico)
            raise SettlementError(
                f"{'/'.join(place)}: the cache saving differs from the events' own by {off} pico-units"
            )
        lines[place[0]].append(_line(place, total, savings[place]))
    return Settlement(dict(lines), result.known, result.provider_retained_pico)


def _add(sums: _Sums, row: UsageRow) -> None:
    sums.events += 1
    sums.uncached_input += row.uncached_input
    sums.cache_read += sum(row.reads.values())
    sums.cache_write += sum(row.writes.values())
    sums.output += row.output
    sums.list_pico += row.list_pico
    sums.metered_pico += row.metered_pico


def _line(place: tuple[str, str, str], sums: _Sums, savings_pico: int) -> LineUsage:
    return LineUsage(
        feature=place[1],
        model=place[2],
        events=sums.events,
        uncached_input=sums.uncached_input,
        cache_read=sums.cache_read,
        cache_write=sums.cache_write,
        output=sums.output,
        list_pico=sums.list_pico,
        savings_pico=savings_pico,
    )
