"""Keeps the control topic as the book says: everything once at the start, then whatever waits in the outbox.

At the start everything is sent, because a log that lives in memory begins empty; sending it again changes nothing.
"""

import logging
import threading

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from taximeter_billing.declarations import republish
from taximeter_billing.declarations.applying import send_outbox
from taximeter_billing.operations import publisher
from taximeter_billing.service.looking import LookingThread
from taximeter_billing.settings import BillingSettings
from taximeter_producers.errors import ControlError, TopicsError
from taximeter_producers.topics import ensure_topics

LOOK_SECONDS = 2.0
RETRY_SECONDS = 5.0
_log = logging.getLogger(__name__)


class ControlSender(LookingThread):
    """A thread that sends. `ready` says whether the log has had everything since the start."""

    def __init__(self, book: Engine, settings: BillingSettings) -> None:
        super().__init__("control-sender")
        self._book = book
        self._settings = settings
        self._publish = publisher(settings)
        self._published = threading.Event()

    @property
    def ready(self) -> bool:
        """Whether everything declared has been published since the start."""
        return self._published.is_set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._step()
                self._stopping.wait(LOOK_SECONDS)
            except (ControlError, TopicsError, SQLAlchemyError) as error:
                _log.warning("the control topic waits: %s", error)
                self._stopping.wait(RETRY_SECONDS)

    def _step(self) -> None:
        if not self._published.is_set():
            settings = self._settings
            ensure_topics(settings.kafka_bootstrap_servers, settings.kafka_partitions, settings.kafka_replication)
            # The outbox first: it may hold deletions, which the book itself no longer names.
            send_outbox(self._book, self._publish)
            count = republish(self._book, self._publish)
            _log.info("published everything that is declared", extra={"records": count})
            self._published.set()
        send_outbox(self._book, self._publish)
