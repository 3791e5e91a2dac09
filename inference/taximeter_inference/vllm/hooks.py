"""The plugin's hold on vLLM: four methods of the engine's output processor, each called once a sequence, never once a token.

Where the engine has a KV connector there is a fifth, called once a step: only there the engine says what the connector brought.

The hooks are attributes of the one running OutputProcessor; its class and its files stay as they are.
"""

import contextlib
import time
from collections.abc import Callable, Iterable
from typing import Any

from taximeter_inference.vllm.engine_types import EngineRequest, PrefillStats, SequenceState
from taximeter_inference.vllm.exchange import (
    ABORTED,
    CURRENT,
    FAILED,
    FINISHED,
    METERED_ELSEWHERE,
    Exchange,
    Part,
    closed_sequence,
)

Prepare = Callable[[EngineRequest, Exchange], None]
"""Checks a request and sets what only the worker may set, before it enters the engine."""

_HOOKED = ("add_request", "abort_requests", "_update_stats_from_finished", "propagate_error")
_STEP = "process_outputs"


class EngineHooks:
    """Books every sequence on the exchange that caused it, and hands on what is over.

    `begin` numbers an exchange that has reached the engine, unless its gateway meters it; `leave` takes a part that is over.
    `connected` says that the engine has a KV connector.
    """

    def __init__(
        self, prepare: Prepare, begin: Callable[[], int], leave: Callable[[Part], None], connected: bool = False
    ) -> None:
        self._prepare = prepare
        self._begin = begin
        self.leave = leave
        self._connected = connected
        self._prefills: dict[str, PrefillStats] = {}
        self._owners: dict[str, tuple[Exchange, SequenceState]] = {}
        self._processor: Any = None

    def running(self) -> list[SequenceState]:
        """The sequences in the engine now. Safe to ask from another thread."""
        return [state for _, state in list(self._owners.values())]

    def attach(self, processor: Any) -> None:
        """Take hold of an engine's output processor (which `drift` has checked)."""
        self._processor = processor
        add, abort, observe = processor.add_request, processor.abort_requests, processor._update_stats_from_finished
        propagate, states = processor.propagate_error, processor.request_states
        owners, prepare, begin, close = self._owners, self._prepare, self._begin, self._close

        def add_request(
            request: Any, prompt: Any, parent_req: Any = None, request_index: int = 0, queue: Any = None
        ) -> None:
            identity = request.request_id
            if identity in states:
                add(request, prompt, parent_req, request_index, queue)
                if identity not in states:
                    close(identity, FINISHED)
                return
            exchange = CURRENT.get() or _stray()
            prepare(request, exchange)
            add(request, prompt, parent_req, request_index, queue)
            if exchange.number is None:
                tags = exchange.tags
                exchange.number = METERED_ELSEWHERE if tags is not None and tags.is_metered else begin()
            exchange.open += 1
            owners[identity] = (exchange, states[identity])

        def abort_requests(request_ids: Iterable[str], internal: bool) -> list[str]:
            aborted: list[str] = abort(request_ids, internal)
            for identity in aborted:
                close(identity, ABORTED)
            return aborted

        def update_stats_from_finished(req_state: Any, finish_reason: Any, iteration_stats: Any) -> None:
            observe(req_state, finish_reason, iteration_stats)
            close(req_state.request_id, finish_reason)

        def propagate_error(e: Exception) -> None:
            propagate(e)
            self._close_all(FAILED)

        hooks = (add_request, abort_requests, update_stats_from_finished, propagate_error)
        for name, hook in zip(_HOOKED, hooks, strict=True):
            setattr(processor, name, hook)
        if self._connected:
            processor.process_outputs = self._noting_prefills(processor.process_outputs)

    def abandon(self) -> None:
        """The engine has stopped: what is in it still is metered as aborted, with what it had used."""
        for exchange, _ in self._owners.values():
            exchange.over = True
        self._close_all(ABORTED)

    def detach(self) -> None:
        """Let go. What is in the engine still is metered as aborted."""
        self.abandon()
        for name in (*_HOOKED, _STEP):
            with contextlib.suppress(AttributeError):
                delattr(self._processor, name)

    def end(self, exchange: Exchange) -> None:
        """The exchange's answer has ended. It leaves now, or with its last sequence."""
        exchange.over, number = True, exchange.number
        if exchange.open or number is None:
            return
        # What closed since the last part becomes one.
        took = time.perf_counter() - exchange.started
        part = Part(exchange.tags, exchange.path, exchange.failed, number, exchange.part, exchange.closed or [], took)
        exchange.number = exchange.closed = None
        exchange.part += 1
        self.leave(part)

    def _noting_prefills(self, process: Callable[..., Any]) -> Callable[..., Any]:
        owners, prefills = self._owners, self._prefills

        def process_outputs(engine_core_outputs: list[Any], *arguments: Any, **named: Any) -> Any:
            for output in engine_core_outputs:
                # With a sequence's first output only, however often it is put off and computed again.
                if output.prefill_stats is not None and output.request_id in owners:
                    prefills[output.request_id] = output.prefill_stats
            return process(engine_core_outputs, *arguments, **named)

        return process_outputs

    def _close(self, identity: str, reason: object) -> None:
        owner = self._owners.pop(identity, None)
        if owner is not None:
            exchange, state = owner
            prefill = self._prefills.pop(identity, None) if self._prefills else None
            closed = closed_sequence(state, reason, prefill)
            if exchange.closed is None:
                exchange.closed = [closed]
            else:
                exchange.closed.append(closed)
            exchange.open -= 1
            if exchange.over and exchange.open == 0:
                self.end(exchange)

    def _close_all(self, reason: str) -> None:
        for identity in list(self._owners):
            self._close(identity, reason)


def _stray() -> Exchange:
    """An exchange for a sequence that nobody announced: it is metered too, and over when the sequence is."""
    exchange = Exchange(None, "", time.perf_counter())
    exchange.over = True
    return exchange
