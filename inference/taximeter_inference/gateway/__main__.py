"""`python -m taximeter_inference.gateway`: one gateway, until SIGTERM."""

import asyncio
import logging
import signal
import sys

from taximeter_inference.gateway.app import Gateway
from taximeter_inference.gateway.http_server import HttpServer
from taximeter_inference.gateway.settings import GatewaySettings
from taximeter_producers.errors import TopicsError
from taximeter_producers.logs import configure_logging
from taximeter_producers.topics import ensure_topics

if sys.platform == "win32":
    from asyncio import new_event_loop
else:
    from uvloop import new_event_loop

STOP_SECONDS_MAX = 12
_log = logging.getLogger(__name__)


def main() -> None:
    """Build the gateway from the environment and run it."""
    configure_logging("gateway")
    settings = GatewaySettings()
    try:
        ensure_topics(settings.kafka_bootstrap_servers, settings.kafka_partitions, settings.kafka_replication)
    except TopicsError as error:
        _log.critical("the gateway cannot start: %s", error)
        sys.exit(1)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        status = runner.run(_run(settings))
    sys.exit(status)


async def _run(settings: GatewaySettings) -> int:
    asked_to_stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop.set)
    gateway = Gateway(settings)
    server = HttpServer(gateway.answer, settings.gateway_body_bytes_max)
    try:
        await gateway.start()
        await server.start(settings.host, settings.gateway_port)
    except Exception as error:  # noqa: BLE001 - whatever it was, the process ends and says so
        _log.critical("the gateway cannot start: %s", error, exc_info=error)
        return 1
    await asked_to_stop.wait()
    gateway.begin_to_stop()
    await server.stop(STOP_SECONDS_MAX)
    await gateway.stop()
    return 0


if __name__ == "__main__":
    main()
