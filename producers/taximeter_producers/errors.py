"""Errors of the producers package.

ProducerError
├── InvalidEventError      the event does not follow the schema
├── SpoolError             the disk spool cannot be used
│   ├── SpoolFullError     the spool has reached its size limit
│   └── SpoolBusyError     another process holds the spool
├── ProducerClosedError    the producer was closed
├── TopicsError            a topic cannot be created, or has another shape
└── ControlError           the control topic cannot be read or written
"""


class ProducerError(Exception):
    """Something about producing or following messages failed."""


class InvalidEventError(ProducerError, ValueError):
    """The event does not follow the schema; it was not taken."""


class SpoolError(ProducerError, OSError):
    """The disk spool cannot be used."""


class SpoolFullError(SpoolError):
    """The spool has reached its size limit while the broker is away; the event was not taken."""


class SpoolBusyError(SpoolError):
    """Another process holds the spool."""


class ProducerClosedError(ProducerError):
    """The producer was closed; the event was not taken."""


class TopicsError(ProducerError):
    """A topic cannot be created, or exists with another shape."""


class ControlError(ProducerError):
    """The control topic cannot be read or written."""
