"""Structured logs: one JSON object a line on stderr, the same for every service."""

import json
import logging
import os
import sys
from datetime import UTC, datetime

_RESERVED = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class JsonFormatter(logging.Formatter):
    """A log record as one JSON object: time, level, service, message, and whatever was passed as `extra`."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "service": self._service,
            "message": record.getMessage(),
            **{name: value for name, value in vars(record).items() if name not in _RESERVED},
        }
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def configure_logging(service: str) -> None:
    """Send this process's logs to stderr as JSON lines. TAXIMETER_LOG_LEVEL (info) says from which level."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service))
    level = os.environ.get("TAXIMETER_LOG_LEVEL", "info").upper()
    logging.basicConfig(level=level, handlers=[handler], force=True)
