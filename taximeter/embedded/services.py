"""Taximeter's services as data: what each runs as, its port, and when it is ready. `taximeter run` reads this table too."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Service:
    """A service: `python -m module`, listening on the port that the environment variable names."""

    name: str
    module: str
    port_variable: str
    port: int
    describes: str
    ready_path: str = "/readyz"
    extra: str = "all"


BILLING = Service(
    "billing", "taximeter_billing.service", "TAXIMETER_BILLING_PORT", 8082, "billing API, pages", extra="billing"
)
METER = Service(
    "meter", "taximeter_streams.meter", "TAXIMETER_METER_PORT", 8083, "usage events into ClickHouse", extra="streams"
)
BUDGETS = Service(
    "budgets", "taximeter_streams.budgets", "TAXIMETER_BUDGETS_PORT", 8084, "running budgets", extra="streams"
)
ALERTS = Service(
    "alerts", "taximeter_streams.alerts", "TAXIMETER_ALERTS_PORT", 8085, "signed webhooks", extra="streams"
)
GATEWAY = Service(
    "gateway",
    "taximeter_inference.gateway",
    "TAXIMETER_GATEWAY_PORT",
    8080,
    "OpenAI-compatible gateway",
    extra="inference",
)
INGEST = Service(
    "ingest", "taximeter_producers.ingest", "TAXIMETER_INGEST_PORT", 8081, "POST /v1/events", extra="billing"
)
UPSTREAM = Service(
    "upstream",
    "taximeter.embedded.upstream",
    "TAXIMETER_UPSTREAM_PORT",
    8090,
    "simulated model server",
    extra="embedded",
)

SERVICES = (BILLING, METER, BUDGETS, ALERTS, GATEWAY, INGEST, UPSTREAM)
BY_NAME = {service.name: service for service in SERVICES}
