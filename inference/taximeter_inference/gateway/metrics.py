"""The gateway's Prometheus metrics."""

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter(
    "taximeter_gateway_requests", "Requests by operation, HTTP status and error code", ("operation", "status", "code")
)
SECONDS = Histogram(
    "taximeter_gateway_request_seconds",
    "Time from a request's head to the end of its answer",
    ("operation",),
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
)
UNDER_WAY = Gauge("taximeter_gateway_requests_under_way", "Requests under way")
RESERVED = Gauge("taximeter_gateway_reservations", "Requests that hold a budget reservation")
