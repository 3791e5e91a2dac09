"""The topics as data: name, key, how long kept, who writes and who reads. The launcher and AsyncAPI read this table."""

from dataclasses import dataclass

DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Topic:
    """A Kafka topic. `retention_ms` None means compacted: the last record of each key is kept."""

    name: str
    key: str
    retention_ms: int | None
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    describes: str

    @property
    def config(self) -> dict[str, str]:
        """The topic's settings on the broker. Record time is the time of arrival, never the event's own."""
        arrival = {"message.timestamp.type": "LogAppendTime"}
        if self.retention_ms is None:
            return {**arrival, "cleanup.policy": "compact"}
        return {**arrival, "cleanup.policy": "delete", "retention.ms": str(self.retention_ms)}


USAGE_EVENTS = Topic(
    "usage.events.v1", "event id", 7 * DAY_MS, ("producers", "gateway", "vllm"), ("meter",), "UsageEvent"
)
USAGE_REJECTED = Topic("usage.rejected.v1", "event id", 30 * DAY_MS, ("meter",), ("operators",), "RejectedEvent")
USAGE_SPEND = Topic("usage.spend.v1", "tenant", 7 * DAY_MS, ("meter",), ("budgets",), "SpendRecord")
BUDGET_STATE = Topic("budget.state.v1", "tenant", None, ("budgets",), ("gateway", "billing"), "BudgetState")
BUDGET_LEASES = Topic(
    "budget.leases.v1", "tenant", DAY_MS, ("gateway", "budgets"), ("budgets", "gateway"), "LeaseMessage"
)
BUDGET_ALERTS = Topic(
    "budget.alerts.v1", "tenant", 30 * DAY_MS, ("budgets", "billing", "vllm"), ("alerts",), "BudgetAlert"
)
CONTROL = Topic("control.v1", "kind/id", None, ("billing",), ("gateway", "meter", "budgets"), "ControlRecord")

TOPICS = (USAGE_EVENTS, USAGE_REJECTED, USAGE_SPEND, BUDGET_STATE, BUDGET_LEASES, BUDGET_ALERTS, CONTROL)
