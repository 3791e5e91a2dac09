"""Which tenants' budget state is due on budget.state.v1: what changed, soon; everything, every few seconds."""

from datetime import datetime

from taximeter_schemas.budgets import BudgetAlert, BudgetPosition, BudgetState
from taximeter_schemas.control_snapshot import ControlSnapshot
from taximeter_streams.budgets import ledger
from taximeter_streams.budgets.ledger import Rules
from taximeter_streams.budgets.state import TenantLedger

SURVEY_SECONDS = 1.0
"""How often every tenant is looked at: leases run out, periods roll over and limits change without a message."""


class StatePublisher:
    """Remembers the ledgers that this worker wrote and the positions it published last."""

    def __init__(self) -> None:
        self._ledgers: dict[str, TenantLedger] = {}
        self._changed: dict[str, None] = {}
        self._published: dict[str, tuple[tuple[BudgetPosition, ...], float]] = {}
        self._surveyed_at = float("-inf")
        self._refresh_seconds = float("inf")

    def changed(self, state: TenantLedger) -> None:
        """A ledger was written."""
        self._ledgers[state.tenant] = state
        self._changed[state.tenant] = None

    def forget(self) -> None:
        """Partitions moved: another worker may have written since."""
        self._ledgers.clear()
        self._changed.clear()
        self._published.clear()
        self._surveyed_at = float("-inf")

    def known(self, tenant: str) -> TenantLedger | None:
        """The ledger as this worker wrote it last."""
        return self._ledgers.get(tenant)

    def due(self, snapshot: ControlSnapshot, loop_time: float, refresh_seconds: float) -> list[str]:
        """The tenants to look at now. `loop_time` is a monotonic clock in seconds."""
        self._refresh_seconds = refresh_seconds
        changed, self._changed = self._changed, {}
        if loop_time - self._surveyed_at < SURVEY_SECONDS:
            return list(changed)
        self._surveyed_at = loop_time
        return list({**changed, **dict.fromkeys(snapshot.budgets), **dict.fromkeys(self._published)})

    def to_publish(self, state: TenantLedger, rules: Rules, now: datetime, loop_time: float) -> BudgetState | None:
        """The tenant's state when it differs from the one published last, or that one is old; else None."""
        self._ledgers.setdefault(state.tenant, state)
        current = ledger.positions(state, rules, now)
        positions, published_at = self._published.get(state.tenant, (None, float("-inf")))
        never_worth_it = positions is None and not current.positions
        if never_worth_it or (positions == current.positions and loop_time - published_at < self._refresh_seconds):
            return None
        if current.positions:
            self._published[state.tenant] = (current.positions, loop_time)
        else:
            # The last budget is gone: said once.
            self._published.pop(state.tenant, None)
        return current

    def earned(self, state: TenantLedger, rules: Rules, now: datetime) -> list[BudgetAlert]:
        """Alerts that the ledger has earned without new spend."""
        return ledger.review(state, rules, now)[1]
