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
from taximeter_billing.domain.settlement import Settlement, segment_at, settle_gathered, settle_period
from taximeter_billing.domain.spans import cuts_us, spans_of
from taximeter_billing.domain.storage import STORAGE
from taximeter_billing.domain.storage_lines import (
    Stored,
    kept_by,
    storage_lines,
    storage_month,
    store,
)
from taximeter_billing.domain.takeback import Reserved, Takeback, contradiction
from taximeter_billing.domain.usage import UnknownPriceError, UsageRow
from taximeter_billing.folding import UsageFold
from taximeter_billing.seeing import Seen, kept_until, spans_of_usage, stored_spans
from taximeter_billing.warehouse import ANY_TIME, TenantSpan, UsageReader
from taximeter_schemas.cache_policies import CachePolicy
from taximeter_schemas.errors import CachePolicyError, CacheUseError
from taximeter_schemas.periods import Period
from taximeter_schemas.tenants import Tenant

Rows = Iterable[UsageRow]
_NEVER = datetime.max.replace(tzinfo=UTC)
ARRIVED = "usage arrived while the period was being closed; close it again"


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
        "stored": seen.storage_set(group),
        "kept_by": [repr(keeping_policy(state, group, one)) for one in seen.companies(group)]
        if seen.stores(group)
        else [],
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
    """Compute the wanted tenants' invoices. All of the group are settled, since savings are shared between them.

    With `rerate`, every event is read and priced anew by it; without, the warehouse adds up what the events were rated at.
    """
    if rerate is None:
        return compute_groups(reader, state, [(group, wanted)], seen, extra)
    agreed = _agreed(state, [group], seen, extra)
    spans = spans_of_usage([group], seen)
    computed = Computed()

    def settle() -> Settlement:
        rows: Rows = map(rerate, reader.rows(spans)) if spans else ()
        return _event_by_event(rows, state, group, seen, agreed)

    def stored(company: tuple[str, ...], policy: CachePolicy) -> Stored:
        rows = map(rerate, reader.rows(stored_spans(company, seen, until)))
        return store(rows, state.cards, policy, storage_month(seen.label))

    until = seen.until(group) or ANY_TIME
    _compute_group(
        settle,
        stored if any(card.stores for card in state.cards) else None,
        state,
        group,
        wanted,
        seen,
        extra,
        agreed,
        computed,
    )
    return computed


def compute_groups(
    reader: UsageReader,
    state: State,
    groups: Sequence[tuple[Group, Collection[str]]],
    seen: Seen,
    extra: Extra = Extra(),
) -> Computed:
    """The same for several groups, each with its wanted tenants; the usage of all of them is added up by one query."""
    every = [group for group, _wanted in groups]
    agreed = _agreed(state, every, seen, extra)
    cuts, takebacks = _cuts(agreed), _takebacks(agreed, seen)
    spans = spans_of_usage(every, seen)
    fold = UsageFold(reader.client, spans, state.cards, cuts)
    untils = kept_until([one for one in every if seen.stores(one)], seen)
    kept_spans = [span for tenant, until in untils.items() for span in stored_spans([tenant], seen, until)]
    kept = UsageFold(reader.client, kept_spans, state.cards)
    taken = _taken_back(reader, [span for span in spans if span.tenant in takebacks], takebacks)
    computed = Computed()
    for group, wanted in groups:
        members = [tenant.id for tenant in group.tenants]

        def settle(group: Group = group, members: list[str] = members) -> Settlement:
            if not fold.is_small(members):
                return _event_by_event(reader.rows(spans_of_usage([group], seen)), state, group, seen, agreed)
            gathered = fold.gathered(members)
            own = {tenant: takebacks[tenant] for tenant in members if tenant in takebacks}
            for tenant, takeback in own.items():
                for row in taken.get(tenant, ()):
                    place = (row.tenant, row.feature, row.model, row.rate_card)
                    gathered.take_back(place, segment_at(cuts, row), takeback, row)
            ttl_s = group.policy.ttl_seconds
            result = fold.savings(group.policy, _salt(group, seen), tenants=members, ttl_s=ttl_s)
            return _with_corrections_met(settle_gathered(gathered, result, _salt(group, seen)), own)

        def stored(company: tuple[str, ...], policy: CachePolicy) -> Stored:
            month = storage_month(seen.label)
            if not kept.is_small(company):
                own = [span for span in kept_spans if span.tenant in company]
                return store(reader.rows(own), state.cards, policy, month)
            return kept.stored(policy, month, tenants=company)

        _compute_group(
            settle, stored if seen.stores(group) else None, state, group, wanted, seen, extra, agreed, computed
        )
    return computed


def _event_by_event(rows: Rows, state: State, group: Group, seen: Seen, agreed: Mapping[str, Agreed]) -> Settlement:
    """Settle a group from its events: what cannot be added up in the warehouse, and what that must agree with."""
    own = {tenant.id: agreed[tenant.id] for tenant in group.tenants}
    takebacks = _takebacks(own, seen)
    settled = settle_period(rows, state.cards, group.policy, _salt(group, seen), _cuts(own), takebacks)
    return _with_corrections_met(settled, takebacks)


def _compute_group(
    settle: Callable[[], Settlement],
    store: Callable[[tuple[str, ...], CachePolicy], Stored] | None,
    state: State,
    group: Group,
    wanted: Collection[str],
    seen: Seen,
    extra: Extra,
    agreed: Mapping[str, Agreed],
    computed: Computed,
) -> None:
    if (reason := _in_other_currency(state, group, seen)) is not None:
        computed.blocked.update(dict.fromkeys(wanted, reason))
        return
    try:
        settlement = settle()
        lines = {} if store is None else _storage(store, state, group, seen)
    except (CachePolicyError, CacheUseError, UnknownPriceError) as error:
        computed.blocked.update(dict.fromkeys(wanted, str(error)))
        return
    if lines is None:
        computed.blocked.update(dict.fromkeys(wanted, ARRIVED))
        return
    for tenant in group.tenants:
        if tenant.id not in wanted:
            continue
        fault = settlement.faults.get(tenant.id) or contradiction(
            [one for one in seen.corrections if one.tenant == tenant.id]
        )
        if fault is not None:
            computed.blocked[tenant.id] = fault
            continue
        parcels = settlement.parcels.get(tenant.id, [])
        if sum(parcel.events for parcel in parcels) != seen.sets[tenant.id].events:
            computed.blocked[tenant.id] = ARRIVED
            continue
        salt, late = f"{tenant.id}/{seen.label}", extra.late.get(tenant.id, ())
        charges = charge(parcels, agreed[tenant.id], salt, late, lines.get(tenant.id, ()))
        if not parcels and not charges.adjustments:
            continue
        inputs = _inputs(state, group, tenant, seen, agreed[tenant.id], charges)
        computed.charges[tenant.id] = charges
        computed.invoices[tenant.id] = build_invoice(
            tenant, seen.periods[tenant.id], group.currency, charges, inputs, settlement.known
        )


def _storage(
    store: Callable[[tuple[str, ...], CachePolicy], Stored], state: State, group: Group, seen: Seen
) -> dict[str, list[Adjustment]] | None:
    """Storage lines by tenant, or None where usage arrived meanwhile. Each company is settled and rounded as a whole, alike for
    whichever group it is asked; the lines of its other tenants stand on their own invoices."""
    lines: dict[str, list[Adjustment]] = {}
    for company in seen.companies(group):
        policy = keeping_policy(state, group, company)
        stored = store(company, policy)
        if stored.events != sum(seen.stored[tenant].events for tenant in company):
            return None
        lines |= storage_lines(stored, state.cards, policy, storage_month(seen.label), seen.label)
    return lines


def keeping_policy(state: State, group: Group, company: Iterable[str]) -> CachePolicy:
    """The group's policy as it holds for what a company of tenants kept in cache."""
    tenants = (state.tenants[name] for name in company if name in state.tenants)
    return kept_by(
        group.policy, (state.policies[one.cache_policy] for one in tenants if one.cache_policy in state.policies)
    )


def _in_other_currency(state: State, group: Group, seen: Seen) -> str | None:
    """Which usage of the group cannot stand on its invoices: an amount in one currency is none in another."""
    currencies = {card.name: card.currency for card in state.cards}
    sets = {tenant.id: [seen.sets[tenant.id]] for tenant in group.tenants}
    for name in seen.keeping(group) if seen.stores(group) else ():
        sets.setdefault(name, []).append(seen.stored[name])
    for tenant, own in sets.items():
        for *_, card in (line for each in own for line in each.lines):
            if (currency := currencies.get(card, group.currency)) != group.currency:
                return (
                    f"usage of {tenant} was rated in {currency} ({card}), and its invoice is in {group.currency}: declare the"
                    " tenant in the currency of its usage again, and another tenant for the new one"
                )
    return None


def _agreed(state: State, groups: Iterable[Group], seen: Seen, extra: Extra) -> dict[str, Agreed]:
    return {
        tenant.id: agreed_of(state, tenant, group.currency, seen.periods[tenant.id], extra)
        for group in groups
        for tenant in group.tenants
    }


def _salt(group: Group, seen: Seen) -> str:
    return f"{group.policy.name}/{seen.label}"


def _cuts(agreed: Mapping[str, Agreed]) -> dict[str, tuple[int, ...]]:
    return {tenant: cut for tenant, held in agreed.items() if (cut := cuts_us(list(held.spans)))}


def _takebacks(agreed: Mapping[str, Agreed], seen: Seen) -> dict[str, Takeback]:
    voided: dict[str, set[tuple[str, str]]] = {}
    for correction in seen.corrections:
        voided.setdefault(correction.tenant, set()).add((correction.source, correction.corrects))
    return {
        tenant: Takeback(voided.get(tenant, set()), tuple(held.reserved))
        for tenant, held in agreed.items()
        if held.reserved or tenant in voided
    }


def _taken_back(
    reader: UsageReader, spans: Sequence[TenantSpan], takebacks: Mapping[str, Takeback]
) -> dict[str, list[UsageRow]]:
    """Events that a line may not pay for, by tenant, in order of time."""
    found: dict[str, list[UsageRow]] = {}
    corrected = {event for takeback in takebacks.values() for _source, event in takeback.voided}
    for row in reader.taken_back(spans, corrected) if spans else ():
        found.setdefault(row.tenant, []).append(row)
    return found


def _with_corrections_met(settlement: Settlement, takebacks: Mapping[str, Takeback]) -> Settlement:
    """The settlement, with a fault for each tenant of whose corrected events one is not there."""
    for tenant, takeback in takebacks.items():
        if missing := set(takeback.voided) - takeback.met:
            source, event = sorted(missing)[0]
            settlement.faults[tenant] = f"event {event} of {source} is voided or amended, and is not in the period"
    return settlement


def _inputs(state: State, group: Group, tenant: Tenant, seen: Seen, agreed: Agreed, charges: Charges) -> Inputs:
    own = seen.sets[tenant.id]
    pool_events, pool_hash = seen.pool_set(group)
    storage_events, storage_hash = seen.storage_set(group)
    used = {standing.parcel.rate_card for standing in charges.usage}
    used |= {line.detail["rate_card"] for line in charges.adjustments if line.kind == STORAGE}
    until = seen.until(group)
    return Inputs(
        events=own.events,
        event_set_hash=own.hash,
        rate_cards={card.name: card.sha256 for card in state.cards if card.name in used},
        cache_policy=group.policy.name,
        pool_events=pool_events,
        pool_event_set_hash=pool_hash,
        inserted_until=until.astimezone(UTC) if until else None,
        agreements=tuple(held.name for held in agreed.agreements),
        grants={grant.id: grant.balance_pico for grant in agreed.grants},
        line_sets=own.lines,
        storage_events=storage_events,
        storage_event_set_hash=storage_hash,
    )


def _meets(starts: datetime, ends: datetime, period: Period) -> bool:
    return starts < period.end and period.start < ends
