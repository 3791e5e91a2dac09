"""A callback for LiteLLM, in its SDK and its proxy: one usage event for each call that ended. Imports LiteLLM when made.

litellm.callbacks = [TaximeterLogger(producer)]
litellm.completion(model=..., messages=..., metadata={"tenant": "acme", "feature": "chat"})
"""

import importlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Protocol

from taximeter_producers.adapters.litellm_call import UNKNOWN_USAGE, CallNames, event_of_call
from taximeter_producers.errors import CallError, ProducerError
from taximeter_schemas import UsageEvent

CALLS_REMEMBERED = 10_000
_log = logging.getLogger(__name__)


class Emits(Protocol):
    """Where events go: a UsageProducer."""

    def emit(self, event: UsageEvent) -> None:
        """Take an event without waiting for the network."""
        ...


def log_problem(error: ProducerError, kwargs: Mapping[str, object]) -> None:
    """Say in the log which call could not be metered, and why."""
    _log.error("a call of LiteLLM is not metered: %s (call %s)", error, kwargs.get("litellm_call_id"))


class TaximeterLogger:
    """A CustomLogger of LiteLLM that emits to a producer. Making one needs LiteLLM; importing it does not.

    A call that cannot become an event goes to `on_problem`, which logs it: an exception here would be swallowed by
    LiteLLM. A stream that broke off is an event without tokens, and told as well. `unmetered` counts them. The producer
    stays the caller's to close.
    """

    def __new__(cls, *args: object, **kwargs: object) -> "TaximeterLogger":
        custom_logger: type = importlib.import_module("litellm.integrations.custom_logger").CustomLogger
        made = cls if issubclass(cls, custom_logger) else type(cls.__name__, (cls, custom_logger), {})
        return object.__new__(made)

    def __init__(
        self,
        producer: Emits,
        names: CallNames | None = None,
        on_problem: Callable[[ProducerError, Mapping[str, object]], None] = log_problem,
    ) -> None:
        super().__init__()
        self._producer = producer
        self._names = names or CallNames()
        self._on_problem = on_problem
        self._lock = threading.Lock()
        self._emitted: OrderedDict[str, None] = OrderedDict()
        self.unmetered = 0

    def log_success_event(
        self, kwargs: Mapping[str, object], response_obj: object, start_time: object, end_time: object
    ) -> None:
        """A call ended well, a stream included."""
        self._take(kwargs, response_obj, failed=False)

    def log_failure_event(
        self, kwargs: Mapping[str, object], response_obj: object, start_time: object, end_time: object
    ) -> None:
        """An attempt failed."""
        self._take(kwargs, response_obj, failed=True)

    async def async_log_success_event(
        self, kwargs: Mapping[str, object], response_obj: object, start_time: object, end_time: object
    ) -> None:
        """The same for asynchronous calls."""
        self._take(kwargs, response_obj, failed=False)

    async def async_log_failure_event(
        self, kwargs: Mapping[str, object], response_obj: object, start_time: object, end_time: object
    ) -> None:
        """The same for asynchronous calls."""
        self._take(kwargs, response_obj, failed=True)

    def _take(self, kwargs: Mapping[str, object], response: object, *, failed: bool) -> None:
        try:
            event = event_of_call(kwargs, response, self._names, failed=failed)
            if event is None:
                return
            with self._lock:
                # Some calls are reported to both kinds of callback; another body under one id would be a conflict.
                if event.id in self._emitted:
                    return
                self._producer.emit(event)
                self._emitted[event.id] = None
                if len(self._emitted) > CALLS_REMEMBERED:
                    self._emitted.popitem(last=False)
            if UNKNOWN_USAGE.items() <= event.data.attributes.items():
                raise CallError("the stream broke off, and LiteLLM does not say what it had used")
        except ProducerError as error:
            self.unmetered += 1
            self._on_problem(error, kwargs)
