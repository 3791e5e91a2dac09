"""The meter's settings, from TAXIMETER_... variables."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from taximeter_schemas.settings import LogSettings, TraceSettings, WarehouseSettings


class MeterSettings(LogSettings, WarehouseSettings, TraceSettings):
    """Limits and addresses of one meter worker."""

    host: str = Field("127.0.0.1", description="Address that health and metrics listen on")
    meter_port: int = Field(8083, description="Port for /healthz, /readyz and /metrics")
    meter_group: str = Field("taximeter-meter", description="Kafka consumer group")
    meter_batch_events_max: int = Field(50_000, ge=1, le=500_000, description="Most messages in one batch")
    meter_linger_ms: int = Field(200, ge=1, le=10_000, description="How long a batch waits to fill")
    meter_session_timeout_ms: int = Field(
        10_000, ge=1_000, le=300_000, description="A worker paused longer writes nothing"
    )
    meter_queue_kbytes_max: int = Field(32_768, ge=1_024, description="Most kilobytes fetched ahead")
    meter_kernel: Literal["auto", "off", "required"] = Field(
        "auto",
        description="Whether to fold with the compiled kernel: where there is a C compiler, never, or not without it",
    )
    state_dir: Path = Field(Path("data/state"), description="Folder for state beside the worker (the dedupe index)")
