"""Topic control.v1, key "kind/id" (compacted): what operators declared, as billing published it; None deletes."""

from enum import StrEnum
from typing import Any

from pydantic import AwareDatetime

from taximeter_schemas.budgets import Message


class ControlKind(StrEnum):
    """What a control record declares; its body is the model of that name."""

    TENANT = "tenant"
    API_KEY = "api_key"
    RATE_CARD = "rate_card"
    BUDGET = "budget"
    TOP_UP = "top_up"
    CACHE_POOL = "cache_pool"
    CACHE_POLICY = "cache_policy"
    ALERT_ENDPOINT = "alert_endpoint"
    PLAN = "plan"
    CONTRACT = "contract"
    CREDIT_GRANT = "credit_grant"
    COST_CARD = "cost_card"


class ControlRecord(Message):
    """One declared thing. `id` of a rate card is its full name ("default@3"), of an API key its SHA-256."""

    kind: ControlKind
    id: str
    body: dict[str, Any] | None
    recorded_at: AwareDatetime

    @property
    def key(self) -> str:
        """The record's key in the topic."""
        return f"{self.kind}/{self.id}"
