"""The budgets worker's metrics, for Prometheus."""

from prometheus_client import Counter, Gauge, Histogram

MESSAGES = Counter(
    "taximeter_budgets_messages", "Messages read, by topic and what became of them", ["topic", "outcome"]
)
ALERTS = Counter("taximeter_budgets_alerts", "Alerts raised", ["kind"])
GRANTS = Counter("taximeter_budgets_grants", "Lease requests answered", ["outcome"])
GRANT_SECONDS = Histogram(
    "taximeter_budgets_grant_seconds",
    "Seconds from reading a lease request to its grant being acknowledged",
    buckets=[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 5],
)
STATES = Counter("taximeter_budgets_states", "Budget states published")
ASSIGNED = Gauge("taximeter_budgets_partitions", "Partitions that this worker owns")
