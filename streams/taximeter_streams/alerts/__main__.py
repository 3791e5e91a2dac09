"""`python -m taximeter_streams.alerts`: delivers budget alerts, until SIGTERM."""

import asyncio
import signal

from taximeter_producers.control import ControlFollower
from taximeter_producers.health import HealthServer
from taximeter_producers.logs import configure_logging
from taximeter_producers.topics import ensure_topics
from taximeter_streams.alerts.delivery_log import DeliveryLog
from taximeter_streams.alerts.service import AlertsService, deliveries_page
from taximeter_streams.alerts.settings import AlertsSettings


def main() -> None:
    """Build the service from the environment and run it."""
    configure_logging("alerts")
    settings = AlertsSettings()
    ensure_topics(settings.kafka_bootstrap_servers, settings.kafka_partitions, settings.kafka_replication)
    control = ControlFollower(settings.kafka_bootstrap_servers)
    control.start()
    try:
        asyncio.run(_run(settings, control))
    finally:
        control.stop()


async def _run(settings: AlertsSettings, control: ControlFollower) -> None:
    def answer(path: str) -> dict[str, object] | None:
        # Asked from a thread of the health server, so with a connection of its own.
        with DeliveryLog(settings.log_path) as reading:
            return deliveries_page(reading, path)

    with DeliveryLog(settings.log_path) as log:
        service = AlertsService(settings, log, control.snapshot)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, service.stop)
        with HealthServer(settings.host, settings.alerts_port, service.ready, answer):
            await service.run()


if __name__ == "__main__":
    main()
