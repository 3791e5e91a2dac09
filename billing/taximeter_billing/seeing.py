"""What the warehouse holds of some tenants in a month, at one moment: seen before anything is computed, so that what comes
meanwhile is left out, and an invoice can name what it was made from."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from taximeter_billing.declarations.state import Group
from taximeter_billing.domain.storage_lines import LOOKBACK, companies, storage_month
from taximeter_billing.domain.takeback import Correction
from taximeter_billing.warehouse import ANY_TIME, EventSet, TenantSpan, UsageReader
from taximeter_schemas.periods import Period, billing_month
from taximeter_schemas.rate_cards import RateCard
from taximeter_schemas.tenants import Tenant


@dataclass(frozen=True, slots=True)
class Seen:
    """What the warehouse held of some tenants in a period at one moment, before any row is read."""

    label: str
    periods: Mapping[str, Period]
    sets: Mapping[str, EventSet]
    corrections: Sequence[Correction] = ()
    stored: Mapping[str, EventSet] = field(default_factory=dict)
    """The events that say how long blocks were kept, by tenant; none where keeping them has no price at all."""
    company: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By tenant, all whose blocks are settled with its own: who used the pools that it used, before it moved to another too."""
    priced: Collection[str] = ()
    """Card versions with a price for it."""

    def stores(self, group: Group) -> bool:
        """Whether keeping blocks has a price for something that the group used, in the period or shortly before it."""
        cards = {card for one in self.keeping(group) for *_, card in self.stored[one].lines}
        return not cards.isdisjoint(self.priced)

    def companies(self, group: Group) -> list[tuple[str, ...]]:
        """The companies that the group's tenants belong to."""
        return sorted({self.company[one.id] for one in group.tenants if one.id in self.company})

    def keeping(self, group: Group) -> list[str]:
        """All tenants of those companies."""
        return sorted({tenant for company in self.companies(group) for tenant in company})

    def until(self, group: Group) -> datetime | None:
        """When the newest row of the group was inserted; whatever came later is left out."""
        sets = [self.sets[tenant.id] for tenant in group.tenants]
        sets += [self.stored[tenant] for tenant in self.keeping(group)] if self.stores(group) else []
        return max((each.newest for each in sets if each.newest is not None), default=None)

    def pool_set(self, group: Group) -> tuple[int, str]:
        """How many events the group has in the period, and their hash."""
        return _joined(self.sets[tenant.id] for tenant in group.tenants)

    def storage_set(self, group: Group) -> tuple[int, str]:
        """How many events say how long the group's blocks were kept, and their hash; nothing where it has no price."""
        if not self.stores(group):
            return 0, ""
        return _joined(self.stored[tenant] for tenant in self.keeping(group))


def look(
    reader: UsageReader,
    tenants: Iterable[Tenant],
    label: str,
    until: datetime = ANY_TIME,
    *,
    cards: Iterable[RateCard],
) -> Seen:
    """See what the warehouse holds of a month, as far as it was inserted until then. `cards`: all that are known."""
    periods = {tenant.id: billing_month(label, tenant.time_zone) for tenant in tenants}
    spans = [TenantSpan(tenant, period.start, period.end, until) for tenant, period in periods.items()]
    priced = {card.name for card in cards if card.stores}
    company: Mapping[str, tuple[str, ...]] = {}
    stored: Mapping[str, EventSet] = {}
    if priced:
        month = storage_month(label)
        company = companies(reader.shared_pools(month.start - LOOKBACK, month.end, until), periods)
        keeping = sorted({tenant for one in company.values() for tenant in one})
        stored = reader.event_sets([_storage_span(tenant, label, until) for tenant in keeping])
    return Seen(label, periods, reader.event_sets(spans), reader.corrections(spans), stored, company, priced)


def spans_of_usage(groups: Iterable[Group], seen: Seen) -> list[TenantSpan]:
    """The spans of tenants that have usage, as far as it had come when it was looked at."""
    return [
        TenantSpan(tenant.id, seen.periods[tenant.id].start, seen.periods[tenant.id].end, until)
        for group in groups
        for until in [seen.until(group) or ANY_TIME]
        for tenant in group.tenants
        if seen.sets[tenant.id].events
    ]


def _storage_span(tenant: str, label: str, until: datetime) -> TenantSpan:
    month = storage_month(label)
    return TenantSpan(tenant, month.start - LOOKBACK, month.end, until)


def stored_spans(tenants: Iterable[str], seen: Seen, until: datetime) -> list[TenantSpan]:
    """The spans of tenants whose events say how long blocks were kept, as far as they had come when it was looked at."""
    return [_storage_span(tenant, seen.label, until) for tenant in tenants if seen.stored[tenant].events]


def kept_until(groups: Iterable[Group], seen: Seen) -> dict[str, datetime]:
    """Until when the rows of each tenant of the groups' companies count. All that were seen had come by the earliest of them."""
    untils: dict[str, datetime] = {}
    for group in groups:
        until = seen.until(group) or ANY_TIME
        untils |= {tenant: max(until, untils.get(tenant, until)) for tenant in seen.keeping(group)}
    return untils


def _joined(sets: Iterable[EventSet]) -> tuple[int, str]:
    events, digest = 0, 0
    for each in sets:
        events, digest = events + each.events, digest ^ each.digest
    return events, f"{digest:032x}"
