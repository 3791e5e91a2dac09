"""Errors of the vLLM plugin.

WorkerError
├── DriftError            this vLLM is not the one that the plugin knows how to hold on to
├── UntaggedError         a request without tags reached the engine
├── ForeignTagsError      a request's tags are missing, not signed, or sent a second time
└── ForeignAdapterError   the request names an adapter of another tenant
"""


class WorkerError(Exception):
    """Something about metering in the worker failed."""


class DriftError(WorkerError):
    """This vLLM is not the one that the plugin knows how to hold on to."""


class UntaggedError(WorkerError, ValueError):
    """A request without tags was refused: this worker serves only what it can meter for somebody."""


class ForeignTagsError(WorkerError, ValueError):
    """The tags of a request cannot be believed."""


class ForeignAdapterError(WorkerError, ValueError):
    """The adapter belongs to other tenants."""
