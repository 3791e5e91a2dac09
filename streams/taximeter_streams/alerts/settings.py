"""The alerts service's settings, from TAXIMETER_... variables."""

from pathlib import Path

from pydantic import Field

from taximeter_schemas.settings import LogSettings


class AlertsSettings(LogSettings):
    """Addresses, and how long an endpoint may take."""

    host: str = Field("127.0.0.1", description="Address that health, metrics and the list of deliveries listen on")
    alerts_port: int = Field(
        8085, ge=0, le=65_535, description="Port for /healthz, /readyz, /metrics and the API under /v1"
    )
    alerts_timeout_seconds: float = Field(10.0, gt=0, le=120, description="How long an endpoint may take to answer")
    alerts_kept_days: int = Field(
        90, ge=31, le=3_650, description="How long finished deliveries are kept to recognise repeats"
    )
    admin_token: str = Field("", description="Bearer token of the API; without one, deliveries are listed and no more")
    state_dir: Path = Field(Path("data/state"), description="Folder for state beside the service (the delivery log)")

    @property
    def log_path(self) -> Path:
        """Where the delivery log lies."""
        return self.state_dir / "alerts" / "deliveries.db"
