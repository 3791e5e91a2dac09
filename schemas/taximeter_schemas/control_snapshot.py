"""What operators have declared, as an immutable snapshot folded from the records of control.v1. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, TypeVar

from taximeter_schemas.budgets import Budget, TopUp
from taximeter_schemas.control import ControlKind, ControlRecord
from taximeter_schemas.periods import PeriodKind
from taximeter_schemas.rate_cards import RateCard, card_at
from taximeter_schemas.tenants import AlertEndpoint, ApiKey, CachePool, Tenant

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ControlSnapshot:
    """Everything declared, as of the last record applied. Reading it needs no lock: a change is a new snapshot."""

    tenants: Mapping[str, Tenant] = field(default_factory=dict)
    api_keys: Mapping[str, ApiKey] = field(default_factory=dict)
    rate_cards: Mapping[str, tuple[RateCard, ...]] = field(default_factory=dict)
    budgets: Mapping[str, tuple[Budget, ...]] = field(default_factory=dict)
    cache_pools: Mapping[str, CachePool] = field(default_factory=dict)
    cache_policies: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    alert_endpoints: Mapping[str, AlertEndpoint] = field(default_factory=dict)
    _declared_budgets: Mapping[str, Budget] = field(default_factory=dict, repr=False)
    """By id, without top-ups: a tombstone does not name the tenant, and a search through all would take too long."""
    _top_ups: Mapping[str, Mapping[str, int]] = field(default_factory=dict, repr=False)
    """Budget id to top-up id to pico-units. A top-up may come before its budget: the topic has several partitions."""

    def apply(self, record: ControlRecord) -> "ControlSnapshot":
        """The snapshot after one more record. A record without a body deletes. Applying it twice changes nothing."""
        kind, key, body = record.kind, record.id, record.body
        match kind:
            case ControlKind.TENANT:
                return replace(self, tenants=_with(self.tenants, key, Tenant.model_validate(body) if body else None))
            case ControlKind.API_KEY:
                return replace(self, api_keys=_with(self.api_keys, key, ApiKey.model_validate(body) if body else None))
            case ControlKind.CACHE_POOL:
                return replace(
                    self, cache_pools=_with(self.cache_pools, key, CachePool.model_validate(body) if body else None)
                )
            case ControlKind.CACHE_POLICY:
                return replace(self, cache_policies=_with(self.cache_policies, key, body))
            case ControlKind.ALERT_ENDPOINT:
                endpoint = AlertEndpoint.model_validate(body) if body else None
                return replace(self, alert_endpoints=_with(self.alert_endpoints, key, endpoint))
            case ControlKind.RATE_CARD:
                return replace(self, rate_cards=self._rate_cards_with(key, body))
            case ControlKind.BUDGET:
                return self._with_budget(key, Budget.model_validate(body) if body else None)
            case ControlKind.TOP_UP:
                return self._with_top_up(key, TopUp.model_validate(body) if body else None)
            case ControlKind.PLAN | ControlKind.CONTRACT | ControlKind.CREDIT_GRANT | ControlKind.COST_CARD:
                return self  # billing's own: what was agreed with a tenant is nobody else's business

    def card_for(self, tenant_id: str, moment: datetime) -> RateCard | None:
        """The version of the tenant's rate card that holds at that moment; None when there is none."""
        tenant = self.tenants.get(tenant_id)
        return card_at(list(self.rate_cards.get(tenant.rate_card, ())), tenant.rate_card, moment) if tenant else None

    def _rate_cards_with(self, name: str, body: dict[str, Any] | None) -> Mapping[str, tuple[RateCard, ...]]:
        card_id = name.rpartition("@")[0]
        others = tuple(card for card in self.rate_cards.get(card_id, ()) if card.name != name)
        cards = (*others, RateCard.model_validate(body)) if body else others
        return _with(self.rate_cards, card_id, cards)

    def _with_budget(self, key: str, budget: Budget | None) -> "ControlSnapshot":
        budgets = self.budgets
        if (before := self._declared_budgets.get(key)) is not None:
            others = tuple(held for held in budgets[before.tenant] if held.id != key)
            budgets = _with(budgets, before.tenant, others)
        if budget is not None:
            budgets = _with(budgets, budget.tenant, (*budgets.get(budget.tenant, ()), self._topped_up(budget)))
        return replace(self, budgets=budgets, _declared_budgets=_with(self._declared_budgets, key, budget))

    def _with_top_up(self, key: str, top_up: TopUp | None) -> "ControlSnapshot":
        owner = top_up.budget if top_up else next((name for name, held in self._top_ups.items() if key in held), None)
        if owner is None:
            return self
        of_budget = _with(self._top_ups.get(owner, {}), key, top_up.amount_pico if top_up else None)
        changed = replace(self, _top_ups=_with(self._top_ups, owner, of_budget))
        return changed._with_budget(owner, self._declared_budgets.get(owner))

    def _topped_up(self, budget: Budget) -> Budget:
        added_pico = sum(self._top_ups.get(budget.id, {}).values())
        if not added_pico or budget.period is not PeriodKind.LIFETIME:
            return budget
        return budget.model_copy(update={"limit_pico": max(0, budget.limit_pico + added_pico)})


def _with(mapping: Mapping[str, T], key: str, value: T | None) -> Mapping[str, T]:
    changed = dict(mapping)
    if value:
        changed[key] = value
    else:
        changed.pop(key, None)
    return changed
