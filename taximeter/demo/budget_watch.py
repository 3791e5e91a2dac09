"""Follows budget.state.v1, to show spend against budget as it is."""

import threading

from confluent_kafka import Consumer, TopicPartition

from taximeter_schemas.budgets import BudgetPosition, BudgetState
from taximeter_schemas.topics import BUDGET_STATE


class BudgetWatch:
    """The latest state of each tenant's budgets, read in a daemon thread without a consumer group."""

    def __init__(self, bootstrap_servers: str, partitions: int) -> None:
        self._states: dict[str, BudgetState] = {}
        self._stopping = threading.Event()
        self._partitions = partitions
        self._config = {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "taximeter-watch-unused",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
        }
        self._thread = threading.Thread(target=self._follow, name="budget-watch", daemon=True)

    def start(self) -> None:
        """Start to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Stop."""
        self._stopping.set()
        self._thread.join(5)

    def position(self, tenant: str) -> BudgetPosition | None:
        """The tenant's tightest hard budget, or its first one."""
        state = self._states.get(tenant)
        if state is None or not state.positions:
            return None
        return max(state.positions, key=lambda position: (position.budget.hard, -position.budget.limit_pico))

    def _follow(self) -> None:
        consumer = Consumer(self._config)
        consumer.assign([TopicPartition(BUDGET_STATE.name, number, 0) for number in range(self._partitions)])
        try:
            while not self._stopping.is_set():
                message = consumer.poll(0.2)
                if message is not None and message.error() is None and (value := message.value()) is not None:
                    state = BudgetState.model_validate_json(value)
                    self._states[state.tenant] = state
        finally:
            consumer.close()
