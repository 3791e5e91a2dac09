"""Metering by answers alone, for a vLLM that the plugin does not know and settings that say to serve all the same.

It asks every answer for its usage and believes that. What the engine generated for a client that left is then known only as
far as its stream told; cached tokens of several prompts, queue times and GPU-seconds are not known at all. Every such event is
marked with the attribute `taximeter.counted`: `middleware`. Salts are set in the body, as a gateway would.
"""

import itertools
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from taximeter_inference.forwarding import Forwarded
from taximeter_inference.gateway.salt import STRIPPED_FIELDS, PoolKeys
from taximeter_inference.vllm.errors import ForeignAdapterError
from taximeter_inference.vllm.metrics import EVENTS
from taximeter_inference.vllm.settings import WorkerSettings
from taximeter_inference.vllm.tags import OPERATIONS, is_named, root_of
from taximeter_inference.vllm.usage import Origin, as_tag, gateway_source, given_attributes, traceparent_of
from taximeter_producers import Safe, SpoolFullError, UsageProducer
from taximeter_schemas.events import (
    TOKENS_MAX,
    Attribution,
    Cache,
    CacheRead,
    Operation,
    Outcome,
    Timing,
    Tokens,
    UsageData,
    UsageEvent,
    Worker,
)

BODY_BYTES_MAX = 64 * 1_048_576
COUNTED_ATTRIBUTE, COUNTED_BY = "taximeter.counted", "middleware"
_CUT_BY_LENGTH = (b'"finish_reason":"length"', b'"stop_reason":"max_tokens"', b'"reason":"max_output_tokens"')
_STREAMS_WITH_OPTIONS = ("/v1/chat/completions", "/v1/completions")
_log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class AnsweredUsage(msgspec.Struct):
    """The usage objects of chat and completions, of responses, and of messages, where cached input stands beside the rest."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class _Answered(msgspec.Struct):
    usage: AnsweredUsage | None = None


class _Answer(msgspec.Struct):
    """A whole answer, or a piece of a stream that may carry another object with the usage in it."""

    usage: AnsweredUsage | None = None
    response: _Answered | None = None
    message: _Answered | None = None


_ANSWER = msgspec.json.Decoder(_Answer)


class AnswerMeter:
    """Meters what passes an ASGI application, by its answers."""

    def __init__(
        self, producer: UsageProducer, settings: WorkerSettings, keys: PoolKeys | None, origin: Origin
    ) -> None:
        self._producer = producer
        self._settings = settings
        self._keys = keys
        self._origin = origin
        self._numbers = itertools.count()
        self._held: deque[tuple[UsageEvent, str]] = deque()
        """Events, with their places in traces, that the spool had no room for."""

    def has_room(self) -> bool:
        """Whether an event would be taken; what waits for room is tried first."""
        while self._held:
            if not self._is_sent(*self._held[0]):
                return False
            self._held.popleft()
        return True

    async def serve(self, app: App, scope: Message, receive: Receive, send: Send, tags: Forwarded) -> None:
        """Serve a request of OPERATIONS and send its event. Raises ForeignAdapterError."""
        began, path = time.perf_counter(), scope["path"]
        raw = await _read(receive)
        body, model = self._rewritten(raw, path, tags)
        headers = [pair for pair in scope["headers"] if pair[0] != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        reader = AnswerReader()
        first: list[float] = []

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.body" and message.get("body"):
                if not first:
                    first.append(time.perf_counter())
                reader.feed(message["body"])
            elif message["type"] == "http.response.start":
                reader.status = message["status"]
            if message["type"] == "http.response.body" and not message.get("more_body"):
                reader.ended = True
            await send(message)

        try:
            await app({**scope, "headers": headers}, _replayed(body, receive), send_on)
        finally:
            usage = reader.usage()
            is_used = usage is not None or (reader.status < 400 and not reader.ended)
            if is_used and not tags.is_metered:
                seconds = (time.perf_counter() - began, first[0] - began if first else None)
                event = self._event(tags, path, model, reader, usage or AnsweredUsage(), seconds)
                EVENTS.labels(event.data.operation.value, event.data.outcome.value).inc()
                self._held.append((event, traceparent_of(tags)))
                self.has_room()

    def close(self) -> None:
        """All events are on the broker or on disk when it returns."""
        if not self.has_room():
            _log.critical("%d usage events are lost: there was no room for them", len(self._held))
        self._producer.close()

    def _rewritten(self, raw: bytes, path: str, tags: Forwarded) -> tuple[bytes, str]:
        try:
            fields = msgspec.json.decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return raw, self._origin.model
        if not isinstance(fields, dict):
            return raw, self._origin.model
        model = str(fields.get("model") or self._origin.model)
        if tags.tenant not in self._settings.worker_adapters.get(model, (tags.tenant,)):
            raise ForeignAdapterError(f"the model {model!r} does not exist for this tenant")
        granted = self._settings.worker_privileges.get(tags.tenant, ())
        given = fields.pop("cache_salt", None)
        for name in (*STRIPPED_FIELDS, "ec_transfer_params"):
            if name not in granted:
                fields.pop(name, None)
        if self._keys is not None:
            fields["cache_salt"] = self._keys.salt(tags.pool, given if isinstance(given, str) else None)
        if fields.get("stream") and path in _STREAMS_WITH_OPTIONS:
            options = fields.get("stream_options")
            asked = options if isinstance(options, dict) else {}
            fields["stream_options"] = {**asked, "include_usage": True, "continuous_usage_stats": True}
        return msgspec.json.encode(fields), model

    def _event(
        self,
        tags: Forwarded,
        path: str,
        model: str,
        reader: "AnswerReader",
        usage: AnsweredUsage,
        seconds: tuple[float, float | None],
    ) -> UsageEvent:
        number = next(self._numbers)
        identity = tags.request_id if is_named(tags) else f"{self._origin.boot}:{number}"
        total, first = seconds
        adapter = model if model != self._origin.model else None
        return UsageEvent(
            id=identity,
            source=gateway_source(identity) if is_named(tags) else f"taximeter-vllm/{self._origin.worker}",
            time=datetime.now(UTC) - timedelta(seconds=total),
            subject=tags.tenant,
            data=UsageData(
                tenant=tags.tenant,
                feature=tags.feature,
                model=as_tag(self._origin.model),
                adapter=as_tag(adapter) if adapter else None,
                tokens=tokens_of(usage),
                operation=tags.operation if tags.operation is not Operation.OTHER else OPERATIONS[path],
                request_id=identity,
                root_request_id=root_of(tags) or identity,
                hop=tags.hop,
                attempt=tags.attempt,
                outcome=reader.outcome,
                cache=Cache(pool=tags.pool, attribution=Attribution.INFERRED),
                timing=Timing(ttft_ms=first * 1_000 if first is not None else None, total_ms=total * 1_000),
                worker=Worker(id=self._origin.boot, sequence=number),
                service_tier=tags.service_tier,
                lease_id=tags.lease_id,
                attributes={**dict(list(given_attributes(tags).items())[:31]), COUNTED_ATTRIBUTE: COUNTED_BY},
            ),
        )

    def _is_sent(self, event: UsageEvent, traceparent: str) -> bool:
        try:
            safe = self._producer.submit(event, traceparent=traceparent)
        except SpoolFullError as error:
            _log.error("no room for usage events, new requests are refused: %s", error)
            return False
        safe.add_done_callback(_report)
        return True


class AnswerReader:
    """Keeps the last usage of an answer, whole or in pieces of a stream. Pure."""

    def __init__(self) -> None:
        self.status = 0
        self.ended = False
        self._streams: bool | None = None
        self._tail = b""
        self._usage: AnsweredUsage | None = None
        self._length = False

    def feed(self, piece: bytes) -> None:
        """Read on."""
        self._tail += piece
        if self._streams is None:
            self._streams = self._tail.lstrip()[:5] in (b"data:", b"event")
        if not self._streams:
            return
        *lines, self._tail = self._tail.split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._look(line[5:])

    def usage(self) -> AnsweredUsage | None:
        """What the answer said that it used; None when it said nothing."""
        if not self._streams and self._tail:
            self._look(self._tail)
            self._tail = b""
        return self._usage

    @property
    def outcome(self) -> Outcome:
        """How it ended, as far as an answer tells."""
        if self.status >= 500:
            return Outcome.ERROR
        if not self.ended:
            return Outcome.ABORTED
        return Outcome.LENGTH if self._length else Outcome.COMPLETED

    def _look(self, text: bytes) -> None:
        dense = text.replace(b" ", b"")
        self._length = self._length or any(mark in dense for mark in _CUT_BY_LENGTH)
        if b'"usage"' not in text:
            return
        try:
            answer = _ANSWER.decode(text)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return
        found = answer.usage or next(
            (inner.usage for inner in (answer.response, answer.message) if inner is not None and inner.usage), None
        )
        if found is not None:
            self._usage = _merged(self._usage, found)


def _merged(before: AnsweredUsage | None, now: AnsweredUsage) -> AnsweredUsage:
    """The later counts where they are given, the earlier ones where they are not."""
    if before is None:
        return now
    names = now.__struct_fields__
    return AnsweredUsage(
        *(getattr(now, name) if getattr(now, name) is not None else getattr(before, name) for name in names)
    )


def tokens_of(usage: AnsweredUsage) -> Tokens:
    """The disjoint tokens of what an answer said."""

    def bounded(value: int | None) -> int:
        return min(max(value or 0, 0), TOKENS_MAX)

    read, created = bounded(usage.cache_read_input_tokens), bounded(usage.cache_creation_input_tokens)
    prompt = bounded(usage.prompt_tokens if usage.prompt_tokens is not None else usage.input_tokens) + read + created
    output = bounded(usage.completion_tokens if usage.completion_tokens is not None else usage.output_tokens)
    details = usage.prompt_tokens_details or usage.input_tokens_details
    cached = min(bounded(details.cached_tokens if details else read), prompt)
    return Tokens(uncached_input=prompt - cached, cache_read=CacheRead(gpu=cached), output=output)


async def _read(receive: Receive) -> bytes:
    parts, size = [], 0
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if not message.get("more_body") or size > BODY_BYTES_MAX:
            return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body in one piece, then whatever the client does next."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay


def _report(safe: "Future[Safe]") -> None:
    if (error := safe.exception()) is not None:
        _log.error("a usage event is not safe: %s", error)
