"""Looks at the running month's margins from time to time, and tells the operator where one turns negative.

The alert takes the path of all alerts: a topic, from which the alerts service delivers it. Its id is the same whenever the same
margin is told of in a month, so it arrives once, also after a restart.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime

from clickhouse_connect.driver.exceptions import ClickHouseError
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from taximeter_billing.alerting import alert_negative_margins
from taximeter_billing.domain.margin import Key
from taximeter_billing.errors import AlertError, NotFoundError
from taximeter_billing.margins import margins_of_month
from taximeter_billing.service.looking import LookingThread
from taximeter_billing.settings import BillingSettings
from taximeter_billing.warehouse import UsageReader
from taximeter_sql import WarehouseError, connect

_log = logging.getLogger(__name__)


class MarginWatch(LookingThread):
    """A thread that looks every `margin_minutes` of the settings, and first at its start; 0 means never.

    Without declared cost cards there is no margin, and nothing is read.
    """

    def __init__(
        self, book: Engine, settings: BillingSettings, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        super().__init__("margin-watch", is_wanted=bool(settings.margin_minutes))
        self._book = book
        self._settings = settings
        self._clock = clock
        self._told: set[tuple[str, Key]] = set()

    def look(self) -> list[Key]:
        """Look once, and tell of what is negative and was not told of yet; returns that.

        Raises AlertError when the log does not take it, and the errors of the book and the warehouse.
        """
        now = self._clock()
        period = f"{now:%Y-%m}"
        client = connect(self._settings.clickhouse_url)
        try:
            found = margins_of_month(self._book, UsageReader(client), period).negative
        except NotFoundError:
            return []
        finally:
            client.close()
        fresh = {key: margin for key, margin in found.items() if (period, key) not in self._told}
        if fresh:
            alert_negative_margins(self._settings.kafka_bootstrap_servers, period, fresh, now)
        self._told |= {(period, key) for key in fresh}
        return sorted(fresh)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                for key in self.look():
                    _log.warning("a margin is negative", extra={"tenant": key[0], "feature": key[1], "model": key[2]})
            except (AlertError, WarehouseError, ClickHouseError, SQLAlchemyError) as error:
                _log.warning("margins wait: %s", error)
            self._stopping.wait(self._settings.margin_minutes * 60)
