"""`python -m taximeter_inference.gateway`: one gateway, until SIGTERM."""

import signal
import sys

import uvicorn

from taximeter_inference.gateway.app import Gateway
from taximeter_inference.gateway.settings import GatewaySettings
from taximeter_producers.logs import configure_logging
from taximeter_producers.topics import ensure_topics

STOP_SECONDS_MAX = 12
KEEP_ALIVE_SECONDS = 75
WAITING_CONNECTIONS_MAX = 2_048


def main() -> None:
    """Build the gateway from the environment and run it."""
    configure_logging("gateway")
    settings = GatewaySettings()
    ensure_topics(settings.kafka_bootstrap_servers, settings.kafka_partitions, settings.kafka_replication)
    # uvicorn stops at SIGTERM and then sends it on; the end in order is exit status 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: sys.exit(0))
    uvicorn.run(
        Gateway(settings),
        host=settings.host,
        port=settings.gateway_port,
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=WAITING_CONNECTIONS_MAX,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS_MAX,
    )


if __name__ == "__main__":
    main()
