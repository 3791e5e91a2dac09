"""The plugin's metrics, on the page that vLLM's server has anyway."""

from prometheus_client import Counter, Gauge

EVENTS = Counter("taximeter_worker_events_total", "Usage events taken by the producer", ["operation", "outcome"])
INCIDENTS = Counter(
    "taximeter_isolation_incidents_total",
    "Cache hits on blocks that another pool warmed",
    ["tenant", "pool", "warmed_in"],
)
BUSY_SECONDS = Gauge("taximeter_worker_busy_seconds", "Busy time that events have been settled for, in seconds")
LOST = Gauge("taximeter_worker_lost_requests", "Requests that were killed with the start before and are not metered")
