"""The alerts service's metrics, for Prometheus."""

from prometheus_client import Counter, Gauge, Histogram

READ = Counter("taximeter_alerts_messages", "Messages of budget.alerts.v1, by what became of them", ["outcome"])
ATTEMPTS = Counter("taximeter_alerts_attempts", "Attempts to deliver a webhook", ["outcome"])
PENDING = Gauge("taximeter_alerts_pending", "Deliveries that wait or are being retried")
FAILED = Gauge("taximeter_alerts_failed", "Deliveries that were given up")
DEAD_ENDPOINTS = Gauge("taximeter_alerts_dead_endpoints", "Endpoints that were given up and wait to be enabled")
DELAY_SECONDS = Histogram(
    "taximeter_alerts_delay_seconds",
    "Seconds from raising an alert to its delivery",
    buckets=[0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 60, 600, 3600],
)
