"""Settles a period for the tenants of one policy and currency: events in, each tenant's parcels with savings out. Pure."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from taximeter_billing.domain.gathering import Gathered, Place, Used
from taximeter_billing.domain.parcels import Component, Parcel, components
from taximeter_billing.domain.quantities import quantities_of
from taximeter_billing.domain.savings import SavingsResult, savings_for_period
from taximeter_billing.domain.split import ExactSums, largest_remainder
from taximeter_billing.domain.takeback import Takeback
from taximeter_billing.domain.usage import Prices, Skus, UsageRow, line_of
from taximeter_schemas.cache_policies import CachePolicy
from taximeter_schemas.cache_uses import CacheUse
from taximeter_schemas.rate_cards import Price, RateCard


class SettlementError(ArithmeticError):
    """Two ways to add up the same usage disagree; nothing may be invoiced from it."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """Each tenant's parcels, and how well the savings are known (exact, inferred, unattributed, in pico-units).

    `faults`: tenants whose usage adds up to different sums by different ways, and how; they have no parcels.
    """

    parcels: dict[str, list[Parcel]]
    known: dict[str, int]
    provider_retained_pico: int
    faults: dict[str, str]


def settle_period(
    rows: Iterable[UsageRow],
    cards: list[RateCard],
    policy: CachePolicy,
    salt: str,
    cuts: Mapping[str, Sequence[int]] | None = None,
    takebacks: Mapping[str, Takeback] | None = None,
) -> Settlement:
    """Settle. `cuts`: moments (microseconds since the epoch, rising) at which a tenant's period is cut into spans.

    A tenant is at fault when the savings engine's metered cost is not the events' own, or the events' own are not what their
    price says.
    """
    prices = Prices(cards)
    skus = Skus(prices)
    uses: list[CacheUse] = []
    gathered = Gathered()
    for row in rows:
        place = (row.tenant, row.feature, row.model, row.rate_card)
        segment = segment_at(cuts, row)
        price = prices.price(row)
        gathered.cells[place][segment].add(price, quantities_of(row, price), row.list_pico, row.metered_pico)
        uses.extend(skus.uses(row))
        if takebacks and (takeback := takebacks.get(row.tenant)):
            gathered.take_back(place, segment, takeback, row)
    ttl_us = None if policy.ttl_seconds is None else policy.ttl_seconds * 1_000_000
    return settle_gathered(gathered, savings_for_period(uses, skus.rates, policy, salt, ttl_s=ttl_us), salt)


def segment_at(cuts: Mapping[str, Sequence[int]] | None, row: UsageRow) -> int:
    """The span of its tenant's period that an event lies in, from 0."""
    at = cuts.get(row.tenant, ()) if cuts else ()
    return bisect_right(at, row.time_us) if at else 0


def settle_gathered(gathered: Gathered, result: SavingsResult, salt: str) -> Settlement:
    """Settle usage that is added up already, with the savings of the same events.

    Where what is charged for input is not its metered cost and what the provider keeps, all of the tenants are at fault.
    """
    accounts = result.by_tenant.values()
    off = sum(one.charge_pico - one.metered_pico for one in accounts) - result.provider_retained_pico
    if off:
        what = f"the cache savings that are shared out differ from those that were made by {off} pico-units; close it again"
        tenants = {place[0] for place in gathered.cells}
        return Settlement({}, result.known, result.provider_retained_pico, dict.fromkeys(tenants, what))
    savings: dict[Place, int] = defaultdict(int)
    cached: dict[Place, int] = defaultdict(int)
    for (tenant, sku), account in result.by_tenant_and_sku.items():
        place = (tenant, *line_of(sku))
        savings[place] += account.list_pico - account.charge_pico
        cached[place] += account.list_pico - account.metered_pico
    faults: dict[str, str] = {}
    parcels: dict[str, list[Parcel]] = defaultdict(list)
    shares = _by_place(gathered.covered)
    for place in sorted(gathered.cells):
        try:
            parcels[place[0]] += _parcels(place, gathered.cells[place], cached[place], savings[place], shares, salt)
        except SettlementError as error:
            faults.setdefault(place[0], str(error))
    whole = {tenant: own for tenant, own in parcels.items() if tenant not in faults}
    return Settlement(whole, result.known, result.provider_retained_pico, faults)


def scope_of(price: Price) -> str:
    """What tells a price from the others of its card, for a receipt: the tags that it names, and its input price."""
    names = ("adapter", "feature", "operation", "service_tier", "region")
    tags = [f"{name}={tag}" for name, tag in zip(names, price.scope[1:], strict=True) if tag is not None]
    return " ".join([price.model, *tags, f"input={price.uncached_input}"])


def _by_place(covered: ExactSums[tuple[Place, int, str]]) -> dict[tuple[Place, int], dict[str, Fraction]]:
    found: dict[tuple[Place, int], dict[str, Fraction]] = defaultdict(dict)
    for (place, segment, what), share in covered.totals().items():
        found[place, segment][what] = share
    return found


def _parcels(
    place: Place,
    spans: Mapping[int, Used],
    cached: int,
    saved: int,
    covered: Mapping[tuple[Place, int], Mapping[str, Fraction]],
    salt: str,
) -> list[Parcel]:
    """Raises SettlementError when two ways to add the line up disagree."""
    off = cached - sum(cell.list_pico - cell.metered_pico for cell in spans.values())
    if off:
        raise SettlementError(f"{'/'.join(place)}: the cache saving differs from the events' own by {off} pico-units")
    shares = _savings_by_span(spans, saved, salt)
    return [
        Parcel(
            *place[1:],
            segment,
            cell.events,
            _components(place, cell),
            cell.list_pico,
            cell.metered_pico,
            shares[str(segment)],
            covered.get((place, segment), {}),
        )
        for segment, cell in sorted(spans.items())
    ]


def _savings_by_span(spans: Mapping[int, Used], saved: int, salt: str) -> dict[str, int]:
    """A line's savings over its spans, by what each has saved at the card's prices; by events where none has."""
    weights = {str(segment): abs(cell.list_pico - cell.metered_pico) for segment, cell in spans.items()}
    if not any(weights.values()):
        weights = {str(segment): cell.events for segment, cell in spans.items()}
    return largest_remainder(saved, weights, salt)


def _by_scope(cell: Used) -> list[tuple[str, Price, dict[str, int]]]:
    """What was used at each price, in an order that depends on the prices alone."""
    found = [(scope_of(price), price, used) for price, used in cell.by_price.values()]
    if len(found) > 1:
        found.sort(key=lambda entry: (entry[0], entry[1].model_dump_json()))
    return found


def _components(place: Place, cell: Used) -> tuple[Component, ...]:
    """Raises SettlementError when quantity times price is not what the events were rated at."""
    parts = tuple(part for scope, price, used in _by_scope(cell) for part in components(scope, price, used))
    list_off = sum(part.list_pico for part in parts) - cell.list_pico
    metered_off = sum(part.amount_pico for part in parts) - cell.metered_pico
    if list_off or metered_off:
        raise SettlementError(
            f"{'/'.join(place)}: quantity times price differs from the events' own cost by {list_off} pico-units at list"
            f" and {metered_off} metered"
        )
    return parts
