"""The budgets worker's settings, from TAXIMETER_... variables."""

from datetime import timedelta
from pathlib import Path
from typing import Literal

from pydantic import Field

from taximeter_schemas.settings import LogSettings
from taximeter_streams.budgets.ledger import LeaseTerms


class BudgetsSettings(LogSettings):
    """Addresses, terms of leases, and how often state is published."""

    host: str = Field("127.0.0.1", description="Address that health and metrics listen on")
    budgets_port: int = Field(8084, ge=0, le=65_535, description="Port for /healthz, /readyz and /metrics")
    budgets_group: str = Field("taximeter-budgets", description="Kafka consumer group, and prefix of the changelog")
    budgets_store: Literal["rocksdb", "memory"] = Field("rocksdb", description="Where tables live beside the log")
    budgets_lease_timeout_seconds: int = Field(
        60, ge=1, le=3_600, description="A lease without word from its gateway ends"
    )
    budgets_settle_timeout_seconds: int = Field(
        900, ge=1, le=86_400, description="How long a lease that is over awaits its events"
    )
    budgets_arrival_timeout_seconds: int = Field(
        60, ge=1, le=3_600, description="How long a dead gateway's lease awaits them once they are all in the log"
    )
    budgets_publish_ms: int = Field(100, ge=10, le=10_000, description="How soon a changed state is published")
    budgets_refresh_seconds: int = Field(
        5, ge=1, le=600, description="How often every state is published, changed or not"
    )
    state_dir: Path = Field(Path("data/state"), description="Folder for state beside the worker")

    @property
    def folder(self) -> Path:
        """The worker's own folder of state."""
        return self.state_dir / "budgets"

    @property
    def lease_terms(self) -> LeaseTerms:
        """The terms of leases, as the ledger takes them."""
        return LeaseTerms(
            lease_timeout=timedelta(seconds=self.budgets_lease_timeout_seconds),
            settle_timeout=timedelta(seconds=self.budgets_settle_timeout_seconds),
            arrival_timeout=timedelta(seconds=self.budgets_arrival_timeout_seconds),
        )
