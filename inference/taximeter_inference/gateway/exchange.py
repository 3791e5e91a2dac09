"""One request from admission to its usage event: dispatched, passed through, counted, settled exactly once."""

import asyncio
import contextlib
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from taximeter_inference.forwarding import Forwarded, sign
from taximeter_inference.gateway.admit import Admitted
from taximeter_inference.gateway.bodies import upstream_body
from taximeter_inference.gateway.counting import PromptCounter
from taximeter_inference.gateway.errors import (
    GatewayError,
    LeaseOverError,
    UpstreamFailedError,
    UpstreamTimeoutError,
    UpstreamUnreachableError,
)
from taximeter_inference.gateway.events import Ending, RequestFacts, build_event, pool_tag
from taximeter_inference.gateway.http_server import ClientGoneError, Reply, Request
from taximeter_inference.gateway.leases import LeaseDesk
from taximeter_inference.gateway.output_bound import OutputBounds
from taximeter_inference.gateway.pricing import cost_pico
from taximeter_inference.gateway.salt import PoolKeys
from taximeter_inference.gateway.sink import EventSink
from taximeter_inference.gateway.stream import DONE, StreamFilter, error_event, strip_cache_report
from taximeter_inference.gateway.tags import PLACE_ATTRIBUTE
from taximeter_inference.gateway.upstream import Response, Upstream
from taximeter_inference.gateway.usage import UpstreamUsage
from taximeter_schemas.events import Operation, Outcome
from taximeter_schemas.wire import UsageEvent

if TYPE_CHECKING:
    from taximeter_inference.gateway.tracing import AttemptTrace

COUNT_SECONDS_MAX = 2.0
"""How long an answer without usage may take to be counted."""
PATHS = {
    Operation.CHAT: "/v1/chat/completions",
    Operation.COMPLETION: "/v1/completions",
    Operation.EMBEDDING: "/v1/embeddings",
}
Headers = tuple[tuple[bytes, bytes], ...]


class _Message(msgspec.Struct, gc=False):
    content: str | None = None


class _Choice(msgspec.Struct, gc=False):
    finish_reason: str | None = None
    message: _Message | None = None
    text: str | None = None


class _Answer(msgspec.Struct, gc=False):
    usage: UpstreamUsage | None = None
    choices: list[_Choice] = []


_ANSWER = msgspec.json.Decoder(_Answer)


@dataclass(frozen=True, slots=True)
class Parts:
    """What an exchange works with. With a `forwarding_secret` signed tags go upstream; `is_metered_upstream` says who emits.

    `bills_failures` says whether what a failed attempt used is charged.
    """

    upstream: Upstream
    counter: PromptCounter
    desk: LeaseDesk
    sink: EventSink
    keys: PoolKeys
    bounds: OutputBounds
    forwarding_secret: bytes | None = None
    is_metered_upstream: bool = False
    bills_failures: bool = True


class Exchange:
    """A request that was admitted. `run` is called once, in a task that is cancelled when the client leaves."""

    def __init__(
        self,
        parts: Parts,
        facts: RequestFacts,
        admitted: Admitted,
        request: Request,
        is_last: bool,
        trace: "AttemptTrace | None" = None,
    ) -> None:
        """`is_last` says that no other attempt follows, so a failure of the model server goes to the client."""
        self._parts = parts
        self._facts = facts
        self._body = admitted.body
        self._admitted = admitted
        self._request = request
        self._is_last = is_last
        self._trace = trace
        self._lease_over = False
        self._began = time.perf_counter()
        self._ttft_ms: float | None = None
        self._settled = False
        self._headers: Headers = ((b"x-taximeter-request-id", facts.request_id.encode()), *admitted.headers)
        if admitted.fell_back:
            self._headers += ((b"x-taximeter-fallback-model", admitted.body.model.encode()),)

    async def run(self, reply: Reply) -> int:
        """Dispatch and answer; returns the HTTP status that was sent. Raises GatewayError when nothing was sent yet."""
        task = asyncio.current_task()
        assert task is not None
        for reservation in self._admitted.reservations:
            self._parts.desk.on_overdue(reservation, lambda: self._cut_short(task))
        try:
            return await self._dispatch(reply)
        except UpstreamTimeoutError:
            # It may have worked on the prompt all the time.
            await self._end_without_usage(Outcome.ERROR)
            raise
        except asyncio.CancelledError:
            if not self._settled:
                await self._client_left()
            if self._lease_over:
                task.uncancel()
                raise LeaseOverError from None
            raise
        finally:
            self._settle(0)
            if self._trace is not None:
                self._trace.end()

    async def _dispatch(self, reply: Reply) -> int:
        payload = upstream_body(
            self._body,
            self._parts.keys.salt(self._facts.pool, self._body.client_salt),
            self._admitted.output_tokens_max,
        )
        async with self._parts.upstream.post(PATHS[self._facts.operation], payload, self._forwarded()) as response:
            if response.status != 200:
                return await self._pass_refusal(response, reply)
            if response.content_type.startswith(b"text/event-stream"):
                return await self._pass_stream(response, reply)
            return await self._pass_whole(response, reply)

    def _cut_short(self, task: "asyncio.Task[object]") -> None:
        self._lease_over = True
        task.cancel()

    def _forwarded(self) -> dict[str, str]:
        """The headers that go upstream: the request's id, and for a worker that meters all that it must know."""
        headers, facts = {"X-Request-Id": self._facts.request_id}, self._facts
        attributes = dict(facts.attributes)
        if self._trace is not None:
            headers["traceparent"] = attributes[PLACE_ATTRIBUTE] = self._trace.traceparent
        secret = self._parts.forwarding_secret
        if secret is None:
            return headers
        tags = Forwarded(
            tenant=facts.tenant,
            feature=facts.tags.feature,
            request_id=facts.request_id,
            root_request_id=facts.root_request_id,
            pool=pool_tag(facts.pool),
            hop=facts.tags.hop,
            attempt=facts.tags.attempt,
            lease_id=facts.lease_id,
            operation=facts.operation,
            service_tier=facts.tags.service_tier,
            is_metered=not self._parts.is_metered_upstream,
            attributes=attributes,
        )
        return {**headers, **dict(sign(tags, secret, int(time.time())))}

    async def _pass_refusal(self, response: Response, reply: Reply) -> int:
        """The model server's own error. A request that it refused used nothing; one that it failed at is an event."""
        answer = await response.read()
        if response.status >= 500:
            self._end_soon(Ending(Outcome.ERROR, UpstreamUsage(), self._elapsed_ms()))
            if not self._is_last:
                raise UpstreamFailedError(f"the model server answered {response.status}")
        await reply.whole(response.status, answer, response.content_type, self._headers)
        return response.status

    async def _pass_whole(self, response: Response, reply: Reply) -> int:
        try:
            raw = await response.read()
        except UpstreamUnreachableError:
            await self._end_without_usage(Outcome.ERROR)
            raise
        try:
            answer = _ANSWER.decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            answer = _Answer()
        is_cut = any(choice.finish_reason == "length" for choice in answer.choices)
        outcome = Outcome.LENGTH if is_cut else Outcome.COMPLETED
        if answer.usage is None or answer.usage.prompt_tokens is None:
            ending = await self._counted(outcome, _text(answer), 0)
        else:
            ending = Ending(outcome, answer.usage, self._elapsed_ms())
        await self._end_safely(ending)
        await reply.whole(200, strip_cache_report(raw), response.content_type, self._headers)
        return 200

    async def _pass_stream(self, response: Response, reply: Reply) -> int:
        bound = self._output_tokens_max
        passing = StreamFilter(self._body.wants_usage, self._body.wants_usage_always, bound)
        failure: GatewayError | None = None
        try:
            await self._send_head(reply, response.content_type)
            async for data in response.parts():
                part = passing.feed(data)
                if self._ttft_ms is None and passing.chunks:
                    self._ttft_ms = self._elapsed_ms()
                if part:
                    await self._send_part(reply, part)
                if passing.cut:
                    # The model server does not keep to its bound: it is stopped.
                    response.close()
                    break
        except (GatewayError, ValueError) as error:
            failure = error if isinstance(error, GatewayError) else UpstreamUnreachableError(str(error))
        except asyncio.CancelledError:
            await self._client_left(passing, response)
            if self._lease_over and not self._request.gone.done():
                await reply.part(error_event(LeaseOverError().body()), is_last=True)
                _uncancel()
                return 200
            raise
        ended = passing.done or passing.finish_reason is not None
        if failure is None and not ended:
            failure = UpstreamUnreachableError("the model server ended the stream before its end")
        outcome = _outcome(passing, Outcome.ERROR if failure is not None or passing.failed else Outcome.COMPLETED)
        await self._end_safely(await self._stream_ending(passing, outcome))
        tail = error_event(failure.body()) if failure is not None and not passing.failed else b""
        if passing.cut:
            tail = passing.cut_ending()
        await reply.part(tail + (DONE if passing.done or passing.cut else b""), is_last=True)
        return 200

    async def _send_head(self, reply: Reply, content_type: bytes) -> None:
        try:
            await reply.head(200, content_type, self._headers)
        except ClientGoneError:
            await self._leave()
            raise

    async def _send_part(self, reply: Reply, part: bytes) -> None:
        try:
            await reply.part(part)
        except ClientGoneError:
            await self._leave()
            raise

    async def _leave(self) -> None:
        """Wait for the word that the client has left, which cancels this task: leaving has one way only."""
        await self._request.gone
        await asyncio.sleep(0)

    async def _client_left(self, passing: StreamFilter | None = None, response: Response | None = None) -> None:
        """The client is gone (or the gateway is, or the lease): what was used until now counts. The model server is stopped."""
        if passing is None or response is None:
            await self._end_without_usage(Outcome.ABORTED)
            return
        with contextlib.suppress(ValueError):
            # What has arrived and was not passed on was generated all the same.
            passing.feed(response.take())
        response.close()
        self._end_soon(await self._stream_ending(passing, _outcome(passing, Outcome.ABORTED)))

    async def _stream_ending(self, passing: StreamFilter, outcome: Outcome) -> Ending:
        usage = passing.usage
        if usage is None or usage.prompt_tokens is None:
            chunks, bound = passing.chunks, self._output_tokens_max
            return await self._counted(outcome, "", chunks if bound is None else min(chunks, bound))
        return Ending(outcome, usage, self._elapsed_ms(), self._ttft_ms)

    async def _end_without_usage(self, outcome: Outcome) -> None:
        self._end_soon(await self._counted(outcome, "", 0))

    async def _counted(self, outcome: Outcome, text: str, chunks: int) -> Ending:
        """The model server did not report usage: count the prompt, and what is known of the answer."""
        total_ms = self._elapsed_ms()
        prompt_tokens, output_tokens = self._admitted.prompt_tokens, chunks
        counter, body = self._parts.counter, self._body
        with contextlib.suppress(GatewayError, TimeoutError, msgspec.MsgspecError):
            async with asyncio.timeout(COUNT_SECONDS_MAX):
                if prompt_tokens is None:
                    prompt_tokens = await counter.count(body, self._facts.operation)
                if text:
                    output_tokens = await counter.count_text(body.model, text)
        usage = UpstreamUsage(prompt_tokens=prompt_tokens or 0, completion_tokens=output_tokens)
        return Ending(outcome, usage, total_ms, self._ttft_ms, counted=True)

    @property
    def _output_tokens_max(self) -> int | None:
        """What all answers together may have, where anything bounds them."""
        each = self._body.output_tokens_max
        bound = self._admitted.output_tokens_max if each is None else each
        return None if bound is None else bound * self._body.answers

    async def _end_safely(self, ending: Ending) -> None:
        """The attempt has ended: settle it, and wait until its event is safe, unless the model server sends that itself."""
        event = self._finish(ending)
        if not self._parts.is_metered_upstream:
            await self._parts.sink.take_safely(event, self._traceparent)

    def _end_soon(self, ending: Ending) -> None:
        event = self._finish(ending)
        if not self._parts.is_metered_upstream:
            self._parts.sink.take_soon(event, self._traceparent)

    def _finish(self, ending: Ending) -> UsageEvent:
        """Build the event, settle to what it costs, and learn from it."""
        if ending.outcome is Outcome.ERROR and not self._parts.bills_failures:
            ending = replace(ending, usage=UpstreamUsage())
        event = build_event(self._facts, ending, self._parts.keys, datetime.now(UTC))
        cost = cost_pico(self._admitted.card, self._admitted.price, event.data)
        self._settle(cost)
        self._learn(ending)
        if self._trace is not None:
            self._trace.used(event, cost)
        return event

    @property
    def _traceparent(self) -> str:
        return self._trace.traceparent if self._trace is not None else ""

    def _learn(self, ending: Ending) -> None:
        admitted, usage = self._admitted, ending.usage
        if ending.counted or not admitted.reservations:
            return
        if usage.prompt_tokens and admitted.prompt_tokens is not None:
            self._parts.counter.learn(self._body.model, admitted.prompt_tokens, usage.prompt_tokens)
        has_ended = ending.outcome in (Outcome.COMPLETED, Outcome.LENGTH)
        if has_ended and self._facts.operation is not Operation.EMBEDDING:
            was_cut = ending.outcome is Outcome.LENGTH and admitted.output_tokens_max is not None
            tokens = -(-(usage.completion_tokens or 0) // self._body.answers)
            self._parts.bounds.learn(self._facts.tenant, self._body.model, tokens, was_cut)

    def _settle(self, amount_pico: int) -> None:
        if self._settled:
            return
        self._settled = True
        for reservation in self._admitted.reservations:
            self._parts.desk.settle(reservation, amount_pico)

    def _elapsed_ms(self) -> float:
        return (time.perf_counter() - self._began) * 1000


def _uncancel() -> None:
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()


def _outcome(passing: StreamFilter, otherwise: Outcome) -> Outcome:
    """A stream whose end was seen has ended, even if its client did not wait for the mark."""
    if passing.finish_reason is None or otherwise is Outcome.ERROR:
        return otherwise
    return Outcome.LENGTH if passing.finish_reason == "length" else Outcome.COMPLETED


def _text(answer: _Answer) -> str:
    return "\n".join(
        choice.text or (choice.message.content if choice.message else "") or "" for choice in answer.choices
    )
