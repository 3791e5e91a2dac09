"""From the bytes of a message to what must be said and stored: the ledger's rules under the tenant's declarations. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from pydantic import TypeAdapter, ValidationError

from taximeter_schemas.budgets import Budget, BudgetAlert, LeaseClose, LeaseGrant, LeaseMessage, LeaseRequest
from taximeter_schemas.control_snapshot import ControlSnapshot
from taximeter_schemas.spend import SpendRecord
from taximeter_streams.budgets import ledger, roots
from taximeter_streams.budgets.forecast import watch_pace
from taximeter_streams.budgets.ledger import LeaseTerms, Rules
from taximeter_streams.budgets.roots import RootBucket
from taximeter_streams.budgets.spikes import watch_days
from taximeter_streams.budgets.state import TenantLedger

_LEASE_MESSAGE: TypeAdapter[LeaseRequest | LeaseGrant | LeaseClose] = TypeAdapter(LeaseMessage)


@dataclass(frozen=True, slots=True)
class Decision:
    """What a message led to. `outcome` names it for the metrics; a `problem` is for the log.

    `bucket` is the changed document of a tenant's root requests, to be kept under `bucket_key`.
    """

    state: TenantLedger
    outcome: str
    alerts: tuple[BudgetAlert, ...] = ()
    grant: LeaseGrant | None = None
    problem: str | None = None
    bucket: RootBucket | None = None
    bucket_key: bytes = b""


LoadBucket = Callable[[bytes], bytes | None]
"""The stored document of that key."""


@dataclass(frozen=True, slots=True)
class Decider:
    """Applies messages to ledgers. `snapshot` gives what is declared now."""

    snapshot: Callable[[], ControlSnapshot]
    terms: LeaseTerms

    def rules(self, tenant: str) -> Rules:
        """What holds for that tenant now; a tenant that nobody declared has no budgets, and UTC."""
        declared = self.snapshot()
        known = declared.tenants.get(tenant)
        budgets = tuple(budget for budget in declared.budgets.get(tenant, ()) if not budget.per_root_request)
        return Rules(budgets, known.time_zone if known else "UTC", self.terms)

    def caps(self, tenant: str) -> tuple[Budget, ...]:
        """The limits on each single root request of that tenant."""
        return tuple(budget for budget in self.snapshot().budgets.get(tenant, ()) if budget.per_root_request)

    def on_spend(self, state: TenantLedger, payload: bytes, now: datetime) -> Decision:
        """Post a spend record."""
        try:
            record = SpendRecord.model_validate_json(payload)
        except ValidationError as error:
            return Decision(state, "invalid", problem=f"not a spend record: {error}")
        if record.tenant != state.tenant:
            return Decision(state, "invalid", problem=f"spend of {record.tenant!r} under the key of {state.tenant!r}")
        rules = self.rules(record.tenant)
        if not rules.budgets:
            return Decision(state, "without_budget")
        if ledger.was_seen(state, record):
            return Decision(state, "replayed")
        posted, alerts = ledger.post(state, rules, record, now)
        paced, forecasts = watch_pace(posted, rules, record, now)
        changed, spikes = watch_days(paced, record, rules.time_zone, now)
        foreign = sorted({budget.id for budget in rules.budgets if budget.currency != record.currency})
        problem = f"spend in {record.currency} does not count against {', '.join(foreign)}" if foreign else None
        return Decision(changed, "posted", (*alerts, *forecasts, *spikes), problem=problem)

    def on_lease(
        self, state: TenantLedger, payload: bytes, now: datetime, load: LoadBucket = lambda key: None
    ) -> Decision:
        """Answer a lease request, or close a lease. The keeper's own grants pass by. `load` finds root requests."""
        try:
            message = _LEASE_MESSAGE.validate_json(payload)
        except ValidationError as error:
            return Decision(state, "invalid", problem=f"not a lease message: {error}")
        if message.tenant != state.tenant:
            return Decision(state, "invalid", problem=f"lease of {message.tenant!r} under the key of {state.tenant!r}")
        if message.root_request_id is not None and not isinstance(message, LeaseGrant):
            return self._on_root_lease(state, message, message.root_request_id, now, load)
        match message:
            case LeaseRequest():
                rules = self.rules(message.tenant)
                changed, grant = ledger.request(state, rules, message, now)
                if any(grant.amounts_pico.values()):
                    return Decision(changed, "granted", grant=grant)
                refusing, alerts = ledger.review(changed, rules, now)
                return Decision(refusing, "refused", tuple(alerts), grant=grant)
            case LeaseClose():
                return Decision(ledger.close(state, self.rules(message.tenant), message, now), "closed")
            case LeaseGrant():
                return Decision(state, "own_grant")

    def _on_root_lease(
        self, state: TenantLedger, message: LeaseRequest | LeaseClose, root: str, now: datetime, load: LoadBucket
    ) -> Decision:
        key = roots.bucket_key(message.tenant, root)
        stored = load(key)
        bucket = RootBucket.model_validate_json(stored) if stored else RootBucket(tenant=message.tenant)
        if isinstance(message, LeaseClose):
            changed, grant, outcome = roots.close(bucket, message, now), None, "closed"
        else:
            changed, grant = roots.request(bucket, self.caps(message.tenant), self.terms, message, now)
            outcome = "granted" if any(grant.amounts_pico.values()) else "refused"
        return Decision(state, outcome, grant=grant, bucket=changed if changed is not bucket else None, bucket_key=key)
