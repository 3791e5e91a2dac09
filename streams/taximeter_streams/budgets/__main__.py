"""`python -m taximeter_streams.budgets`: one budgets worker, until SIGTERM."""

import asyncio
import logging

import faust

from taximeter_producers.health import HealthServer
from taximeter_producers.logs import configure_logging
from taximeter_streams.budgets.deciding import Decider
from taximeter_streams.budgets.ending import end_in_time
from taximeter_streams.budgets.log_life import begin_life
from taximeter_streams.budgets.settings import BudgetsSettings
from taximeter_streams.budgets.worker import BudgetsWorker
from taximeter_streams.starting import Starting


class _Process(faust.Worker):
    async def stop(self) -> None:
        end_in_time()
        await super().stop()


def main() -> None:
    """Build the worker from the environment and run it."""
    configure_logging("budgets")
    _quieten()
    settings = BudgetsSettings()
    starting = Starting()
    with HealthServer(settings.host, settings.budgets_port, starting.ready, alive=starting.alive):
        starting.topics(settings)
        if settings.budgets_store == "rocksdb":
            begin_life(settings.folder, settings.log_id)
        control = starting.control(settings.kafka_bootstrap_servers)
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        worker = BudgetsWorker(settings, Decider(control.snapshot, settings.lease_terms))
        process = _Process(worker.app, loop=loop, quiet=True, override_logging=False, redirect_stdouts=False)
        process.spinner = None
        starting.hand_over(lambda: (True, {}), worker.ready)
        try:
            process.execute_from_commandline()
        finally:
            control.stop()


def _quieten() -> None:
    """faust tells of every part that starts, and warns whenever a buffer fills for a moment."""
    for name in (
        "faust",
        "mode",
        "aiokafka",
        "taximeter_streams.budgets.transport",
        "taximeter_streams.budgets.worker",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("faust.transport.producer", "mode.timers"):
        logging.getLogger(name).setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
