"""`python -m taximeter_streams.alerts`: delivers budget alerts, until SIGTERM."""

import asyncio
import signal

from aiohttp import web

from taximeter_producers.control import ControlFollower
from taximeter_producers.health import HealthServer
from taximeter_producers.logs import configure_logging
from taximeter_streams.alerts.delivery_log import DeliveryLog
from taximeter_streams.alerts.service import AlertsService
from taximeter_streams.alerts.settings import AlertsSettings
from taximeter_streams.alerts.web import AlertsApi
from taximeter_streams.starting import Starting


def main() -> None:
    """Build the service from the environment and run it."""
    configure_logging("alerts")
    settings = AlertsSettings()
    starting = Starting()
    with HealthServer(settings.host, settings.alerts_port, starting.ready, alive=starting.alive):
        starting.topics(settings)
        control = starting.control(settings.kafka_bootstrap_servers)
    try:
        asyncio.run(_run(settings, control))
    finally:
        control.stop()


async def _run(settings: AlertsSettings, control: ControlFollower) -> None:
    with DeliveryLog(settings.log_path) as log:
        service = AlertsService(settings, log, control.snapshot)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, service.stop)
        api = AlertsApi(service, log, control.snapshot, settings.admin_token)
        runner = web.AppRunner(api.application(), access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, settings.host, settings.alerts_port).start()
            await service.run()
        finally:
            await runner.cleanup()


if __name__ == "__main__":
    main()
