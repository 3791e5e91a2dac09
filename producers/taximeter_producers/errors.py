"""Errors of the producers package.

ProducerError
├── ProducerIdError        the producer's id cannot name a spool
├── InvalidEventError      the event does not follow the schema
├── UndeliverableError     the broker refuses this event for good
├── SpoolError             the disk spool cannot be used
│   ├── SpoolFullError     the spool has reached its size limit
│   └── SpoolBusyError     another process holds the spool
├── ProducerClosedError    the producer was closed
├── UsageObjectError       a vendor's usage object cannot be turned into tokens
│   ├── UsageShapeError    it is not an object, or a count is missing or no whole number
│   └── UsageSumError      its counts contradict each other
├── CallError              a call that LiteLLM reports cannot become a usage event
├── SpanError              spans cannot be read, or one of them cannot become a usage event
├── TracingError           traces were asked for, and OpenTelemetry is not installed
├── TopicsError            a topic cannot be created, or has another shape
└── ControlError           the control topic cannot be read or written
"""


class ProducerError(Exception):
    """Something about producing or following messages failed."""


class ProducerIdError(ProducerError, ValueError):
    """A producer's id is 1 to 64 letters, digits, dots, dashes and underscores: it names the producer's spool."""


class InvalidEventError(ProducerError, ValueError):
    """The event does not follow the schema; it was not taken."""


class UndeliverableError(ProducerError):
    """The broker refuses this event for good; it was set aside in the spool's set-aside.jsonl."""


class SpoolError(ProducerError, OSError):
    """The disk spool cannot be used."""


class SpoolFullError(SpoolError):
    """The spool has reached its size limit while the broker is away; the event was not taken."""


class SpoolBusyError(SpoolError):
    """Another process holds the spool; each process needs a producer id of its own."""


class ProducerClosedError(ProducerError):
    """The producer was closed; the event was not taken."""


class UsageObjectError(ProducerError, ValueError):
    """A vendor's usage object cannot be turned into tokens."""


class UsageShapeError(UsageObjectError):
    """The usage is not an object, or a count in it is missing or is not a whole number of tokens."""


class UsageSumError(UsageObjectError):
    """The counts of the usage contradict each other."""


class CallError(ProducerError, ValueError):
    """A call that LiteLLM reports cannot become a usage event."""


class SpanError(ProducerError, ValueError):
    """Spans cannot be read, or one of them cannot become a usage event."""


class TracingError(ProducerError):
    """Traces were asked for, and OpenTelemetry is not installed."""


class TopicsError(ProducerError):
    """A topic cannot be created, or exists with another shape."""


class ControlError(ProducerError):
    """The control topic cannot be read or written."""
