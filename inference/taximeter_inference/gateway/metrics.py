"""The gateway's Prometheus metrics."""

from functools import lru_cache

from prometheus_client import Counter, Gauge, Histogram

from taximeter_schemas.events import Operation

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
SPOOL_BYTES = Gauge("taximeter_gateway_spool_bytes", "Bytes of usage events that wait on disk for the broker")
UNSAFE_EVENTS = Gauge("taximeter_gateway_unsafe_events", "Usage events that are neither at the broker nor on disk yet")


def observe(operation: Operation | None, status: int, code: str, seconds: float) -> None:
    """A request has ended."""
    name = operation.value if operation is not None else "other"
    _requests(name, status, code).inc()
    _seconds(name).observe(seconds)


@lru_cache(maxsize=1_000)
def _requests(operation: str, status: int, code: str) -> Counter:
    # Looking a child up by its labels costs ten times what counting does.
    return REQUESTS.labels(operation, str(status), code)


@lru_cache(maxsize=100)
def _seconds(operation: str) -> Histogram:
    return SECONDS.labels(operation)
