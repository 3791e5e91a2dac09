"""One request from admission to its usage event: dispatched, passed through, counted, settled exactly once."""

import asyncio
import contextlib
import time
from dataclasses import dataclass
from datetime import UTC, datetime

import aiohttp
import msgspec

from taximeter_inference.gateway.admit import Admitted
from taximeter_inference.gateway.asgi import Message, Send, send_body, send_head, send_part
from taximeter_inference.gateway.bodies import ClientBody, upstream_body
from taximeter_inference.gateway.counting import PromptCounter
from taximeter_inference.gateway.errors import (
    GatewayError,
    UpstreamTimeoutError,
    UpstreamUnreachableError,
)
from taximeter_inference.gateway.events import Ending, RequestFacts, build_event
from taximeter_inference.gateway.leases import LeaseDesk
from taximeter_inference.gateway.pricing import cost_pico
from taximeter_inference.gateway.salt import PoolKeys
from taximeter_inference.gateway.sink import EventSink
from taximeter_inference.gateway.stream import DONE, StreamFilter, error_event, strip_cache_report
from taximeter_inference.gateway.upstream import Upstream, failures
from taximeter_inference.gateway.usage import UpstreamUsage
from taximeter_schemas.events import Operation, Outcome, UsageEvent

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
    """What an exchange works with."""

    upstream: Upstream
    counter: PromptCounter
    desk: LeaseDesk
    sink: EventSink
    keys: PoolKeys


class Exchange:
    """A request that was admitted. `run` is called once, in a task that is cancelled when the client leaves."""

    def __init__(
        self, parts: Parts, facts: RequestFacts, body: ClientBody, admitted: Admitted, client: "asyncio.Future[Message]"
    ) -> None:
        self._parts = parts
        self._facts = facts
        self._body = body
        self._admitted = admitted
        self._client = client
        self._began = time.perf_counter()
        self._ttft_ms: float | None = None
        self._settled = False
        self._headers: Headers = ((b"x-taximeter-request-id", facts.request_id.encode()), *admitted.headers)

    async def run(self, send: Send) -> int:
        """Dispatch and answer; returns the HTTP status that was sent. Raises GatewayError when nothing was sent yet."""
        try:
            payload = upstream_body(
                self._body,
                self._parts.keys.salt(self._facts.pool, self._body.client_salt),
                self._admitted.output_tokens_max,
            )
            path = PATHS[self._facts.operation]
            async with self._parts.upstream.post(path, payload, self._facts.request_id) as response:
                if response.status != 200:
                    return await self._pass_refusal(response, send)
                if response.content_type == "text/event-stream":
                    return await self._pass_stream(response, send)
                return await self._pass_whole(response, send)
        except UpstreamTimeoutError:
            # It may have worked on the prompt all the time.
            await self._end_without_usage(Outcome.ERROR)
            raise
        except asyncio.CancelledError:
            if not self._settled and self._client.done():
                await self._client_left()
            raise
        finally:
            self._settle(0)

    async def _pass_refusal(self, response: aiohttp.ClientResponse, send: Send) -> int:
        """The model server's own error. A request that it refused used nothing; one that it failed at is an event."""
        with failures():
            answer = await response.read()
        if response.status >= 500:
            self._parts.sink.take_soon(self._finish(Ending(Outcome.ERROR, UpstreamUsage(), self._elapsed_ms())))
        await send_body(send, response.status, answer, _content_type(response), self._headers)
        return response.status

    async def _pass_whole(self, response: aiohttp.ClientResponse, send: Send) -> int:
        try:
            with failures():
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
        await self._parts.sink.take_safely(self._finish(ending))
        await send_body(send, 200, strip_cache_report(raw), _content_type(response), self._headers)
        return 200

    async def _pass_stream(self, response: aiohttp.ClientResponse, send: Send) -> int:
        passing = StreamFilter(self._body.wants_usage, self._body.wants_usage_always)
        failure: GatewayError | None = None
        try:
            await send_head(send, 200, _content_type(response), self._headers)
            with failures():
                async for data in response.content.iter_any():
                    part = passing.feed(data)
                    if self._ttft_ms is None and passing.chunks:
                        self._ttft_ms = self._elapsed_ms()
                    if part:
                        await send_part(send, part)
        except (GatewayError, ValueError) as error:
            failure = error if isinstance(error, GatewayError) else UpstreamUnreachableError(str(error))
        except asyncio.CancelledError:
            if self._client.done():
                await self._client_left(passing, response)
            raise
        ended = passing.done or passing.finish_reason is not None
        if failure is None and not ended:
            failure = UpstreamUnreachableError("the model server ended the stream before its end")
        outcome = _outcome(passing, Outcome.ERROR if failure is not None or passing.failed else Outcome.COMPLETED)
        await self._parts.sink.take_safely(self._finish(await self._stream_ending(passing, outcome)))
        tail = error_event(failure.body()) if failure is not None and not passing.failed else b""
        await send_part(send, tail + (DONE if passing.done else b""), is_last=True)
        return 200

    async def _client_left(
        self, passing: StreamFilter | None = None, response: aiohttp.ClientResponse | None = None
    ) -> None:
        """The client is gone: what it used until now counts. Leaving the exchange makes the model server stop."""
        if passing is None or response is None:
            await self._end_without_usage(Outcome.ABORTED)
            return
        with contextlib.suppress(aiohttp.ClientError, ValueError, TimeoutError, OSError):
            # What has arrived and was not passed on was generated all the same.
            passing.feed(response.content.read_nowait())
        response.close()
        ending = await self._stream_ending(passing, _outcome(passing, Outcome.ABORTED))
        self._parts.sink.take_soon(self._finish(ending))

    async def _stream_ending(self, passing: StreamFilter, outcome: Outcome) -> Ending:
        usage = passing.usage
        if usage is None or usage.prompt_tokens is None:
            return await self._counted(outcome, "", passing.chunks)
        return Ending(outcome, usage, self._elapsed_ms(), self._ttft_ms)

    async def _end_without_usage(self, outcome: Outcome) -> None:
        self._parts.sink.take_soon(self._finish(await self._counted(outcome, "", 0)))

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

    def _finish(self, ending: Ending) -> UsageEvent:
        """Build the event and settle to what it costs."""
        event = build_event(self._facts, ending, self._parts.keys, datetime.now(UTC))
        self._settle(cost_pico(self._admitted.card, event.data))
        return event

    def _settle(self, amount_pico: int) -> None:
        if self._settled:
            return
        self._settled = True
        if self._admitted.reservation is not None:
            self._parts.desk.settle(self._admitted.reservation, amount_pico)

    def _elapsed_ms(self) -> float:
        return (time.perf_counter() - self._began) * 1000


def _outcome(passing: StreamFilter, otherwise: Outcome) -> Outcome:
    """A stream whose end was seen has ended, even if its client did not wait for the mark."""
    if passing.finish_reason is None or otherwise is Outcome.ERROR:
        return otherwise
    return Outcome.LENGTH if passing.finish_reason == "length" else Outcome.COMPLETED


def _text(answer: _Answer) -> str:
    return "\n".join(
        choice.text or (choice.message.content if choice.message else "") or "" for choice in answer.choices
    )


def _content_type(response: aiohttp.ClientResponse) -> bytes:
    return response.headers.get("Content-Type", "application/json").encode("latin-1")
