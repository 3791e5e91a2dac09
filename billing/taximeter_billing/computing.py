"""Computes the invoices of tenants that settle together, from what is declared and what the warehouse holds.

Closing, verifying, asking what another card would do, and looking again at a period that is invoiced all go through here, so
they cannot disagree. Nothing is written.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256

from taximeter_billing.declarations.state import Group, State
from taximeter_billing.domain.adjusting import Adjustment
from taximeter_billing.domain.charges import Agreed, Charges, charge
from taximeter_billing.domain.credits import Grant
from taximeter_billing.domain.invoice import CODE_VERSION, Inputs, Invoice, build_invoice, canonical_json
from taximeter_billing.domain.settlement import Settlement, settle_period
from taximeter_billing.domain.spans import cuts_us, spans_of
from taximeter_billing.domain.takeback import Reserved, Takeback
from taximeter_billing.domain.usage import UnknownPriceError, UsageRow
from taximeter_billing.warehouse import ANY_TIME, Correction, EventSet, TenantSpan, UsageReader
from taximeter_schemas.errors import CachePolicyError, CacheUseError
from taximeter_schemas.periods import Period, billing_month
from taximeter_schemas.tenants import Tenant

Rows = Iterable[UsageRow]
_NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Seen:
    """What the warehouse held of some tenants in a period at one moment, before any row is read."""

    label: str
    periods: Mapping[str, Period]
    sets: Mapping[str, EventSet]
    corrections: Sequence[Correction] = ()

    def until(self, group: Group) -> datetime | None:
        """When the newest row of the group was inserted; whatever came later is left out."""
        newest = [moment for tenant in group.tenants if (moment := self.sets[tenant.id].newest) is not None]
        return max(newest, default=None)


@dataclass(frozen=True, slots=True)
class Extra:
    """What an invoice depends on beside usage and declarations, by tenant."""

    grants: Mapping[str, tuple[Grant, ...]] = field(default_factory=dict)
    late: Mapping[str, Sequence[Adjustment]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Computed:
    """By tenant: its invoice, or what stands in the way. A tenant that owes nothing for nothing is in neither."""

    invoices: dict[str, Invoice] = field(default_factory=dict)
    charges: dict[str, Charges] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)


def look(reader: UsageReader, tenants: Iterable[Tenant], label: str, until: datetime = ANY_TIME) -> Seen:
    """See what the warehouse holds of a month, as far as it was inserted until then."""
    periods = {tenant.id: billing_month(label, tenant.time_zone) for tenant in tenants}
    spans = [TenantSpan(tenant, period.start, period.end, until) for tenant, period in periods.items()]
    return Seen(label, periods, reader.event_sets(spans), reader.corrections(spans))


def agreed_of(state: State, tenant: Tenant, currency: str, period: Period, extra: Extra) -> Agreed:
    """The tenant's period with what was agreed for it."""
    agreements = [held for held in state.agreements.get(tenant.id, []) if _meets(held.starts, held.ends, period)]
    grants = tuple(
        grant
        for grant in extra.grants.get(tenant.id, ())
        if _meets(grant.effective_at, grant.expires_at or _NEVER, period)
    )
    reserved = tuple(
        Reserved.between(reservation, max(period.start, held.starts), min(period.end, held.ends))
        for held in agreements
        for reservation in held.terms.reservations
    )
    return Agreed(period, tenant.time_zone, currency, spans_of(period, agreements, grants), reserved, grants)


def inputs_sha256(state: State, group: Group, tenant: Tenant, seen: Seen, extra: Extra) -> str:
    """A hash over all that the tenant's invoice would be made from: while it is the same, so is the invoice."""
    agreed = agreed_of(state, tenant, group.currency, seen.periods[tenant.id], extra)
    said = {
        "code": CODE_VERSION,
        "tenant": tenant.model_dump(mode="json"),
        "pool": {member.id: seen.sets[member.id].hash for member in group.tenants},
        "cards": sorted(card.sha256 for card in state.cards if card.id == tenant.rate_card),
        "policy": group.policy.model_dump(mode="json"),
        "agreements": [held.sha256 for held in agreed.agreements],
        "grants": [repr(grant) for grant in agreed.grants],
        "late": [repr(line) for line in extra.late.get(tenant.id, ())],
        "until": str(seen.until(group)),
    }
    return sha256(canonical_json(said).encode()).hexdigest()


def compute(
    reader: UsageReader,
    state: State,
    group: Group,
    wanted: Collection[str],
    seen: Seen,
    extra: Extra = Extra(),
    rerate: Callable[[UsageRow], UsageRow] | None = None,
) -> Computed:
    """Compute the wanted tenants' invoices. All of the group are settled, since savings are shared between them."""
    agreed = {
        tenant.id: agreed_of(state, tenant, group.currency, seen.periods[tenant.id], extra) for tenant in group.tenants
    }
    until = seen.until(group)
    spans = [
        TenantSpan(tenant.id, seen.periods[tenant.id].start, seen.periods[tenant.id].end, until or ANY_TIME)
        for tenant in group.tenants
        if seen.sets[tenant.id].events
    ]
    computed = Computed()
    try:
        rows: Rows = reader.rows(spans) if spans else ()
        settlement = _settle(map(rerate, rows) if rerate else rows, state, group, seen, agreed)
    except (CachePolicyError, CacheUseError, UnknownPriceError) as error:
        computed.blocked.update(dict.fromkeys(wanted, str(error)))
        return computed
    for tenant in group.tenants:
        if tenant.id not in wanted:
            continue
        if (fault := settlement.faults.get(tenant.id)) is not None:
            computed.blocked[tenant.id] = fault
            continue
        parcels = settlement.parcels.get(tenant.id, [])
        if sum(parcel.events for parcel in parcels) != seen.sets[tenant.id].events:
            computed.blocked[tenant.id] = "usage arrived while the period was being closed; close it again"
            continue
        charges = charge(parcels, agreed[tenant.id], f"{tenant.id}/{seen.label}", extra.late.get(tenant.id, ()))
        if not parcels and not charges.adjustments:
            continue
        inputs = _inputs(state, group, tenant, seen, agreed[tenant.id], charges)
        computed.charges[tenant.id] = charges
        computed.invoices[tenant.id] = build_invoice(
            tenant, seen.periods[tenant.id], group.currency, charges, inputs, settlement.known
        )
    return computed


def _settle(rows: Rows, state: State, group: Group, seen: Seen, agreed: Mapping[str, Agreed]) -> Settlement:
    cuts = {tenant: cut for tenant, held in agreed.items() if (cut := cuts_us(list(held.spans)))}
    voided: dict[str, set[tuple[str, str]]] = {}
    for correction in seen.corrections:
        voided.setdefault(correction.tenant, set()).add((correction.source, correction.corrects))
    takebacks = {
        tenant: Takeback(voided.get(tenant, set()), tuple(held.reserved))
        for tenant, held in agreed.items()
        if held.reserved or tenant in voided
    }
    salt = f"{group.policy.name}/{seen.label}"
    settlement = settle_period(rows, state.cards, group.policy, salt, cuts, takebacks)
    for tenant, takeback in takebacks.items():
        if missing := set(takeback.voided) - takeback.met:
            source, event = sorted(missing)[0]
            settlement.faults[tenant] = f"event {event} of {source} is voided or amended, and is not in the period"
    return settlement


def _inputs(state: State, group: Group, tenant: Tenant, seen: Seen, agreed: Agreed, charges: Charges) -> Inputs:
    own = seen.sets[tenant.id]
    pool = [seen.sets[member.id] for member in group.tenants]
    digest = 0
    for member in pool:
        digest ^= member.digest
    used = {standing.parcel.rate_card for standing in charges.usage}
    until = seen.until(group)
    return Inputs(
        events=own.events,
        event_set_hash=own.hash,
        rate_cards={card.name: card.sha256 for card in state.cards if card.name in used},
        cache_policy=group.policy.name,
        pool_events=sum(member.events for member in pool),
        pool_event_set_hash=f"{digest:032x}",
        inserted_until=until.astimezone(UTC) if until else None,
        agreements=tuple(held.name for held in agreed.agreements),
        grants={grant.id: grant.balance_pico for grant in agreed.grants},
        line_sets=own.lines,
    )


def _meets(starts: datetime, ends: datetime, period: Period) -> bool:
    return starts < period.end and period.start < ends
