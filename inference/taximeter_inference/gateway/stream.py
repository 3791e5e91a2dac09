"""A stream on its way through: usage is read from every chunk, and goes on only to a client that asked for it. Pure.

The upstream is told to report usage on every chunk, so that the last one seen is true when a client leaves in the middle.
The mark of the end is held back: it is sent once the usage event is safe.
"""

import msgspec

from taximeter_inference.gateway.usage import CacheReport, UpstreamUsage, read_usage

DONE = b"data: [DONE]\n\n"
EVENT_BYTES_MAX = 16 * 1_048_576
_CACHE_MARK = b'"taximeter_cache"'


class _Choice(msgspec.Struct, gc=False):
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] = []
    usage: msgspec.Raw = msgspec.Raw(b"null")
    error: msgspec.Raw = msgspec.Raw(b"null")


_CHUNK = msgspec.json.Decoder(_Chunk)
_TOP = msgspec.json.Decoder(dict[str, msgspec.Raw])
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encode = msgspec.json.Encoder().encode
_NULL = b"null"


class StreamFilter:
    """Takes the upstream's bytes and gives the client's. What it saw: usage, the end's reason, an error, the end's mark.

    A stream that goes beyond `output_tokens_max`, which the upstream was told, is cut there: `cut` says so, and what comes
    after is neither passed on nor counted.
    """

    def __init__(self, wants_usage: bool, wants_usage_always: bool, output_tokens_max: int | None = None) -> None:
        self._wants_usage = wants_usage
        self._wants_usage_always = wants_usage_always
        self._output_tokens_max = output_tokens_max
        self._last_payload = b""
        self._rest = b""
        self._usage = b""
        self._cache_report = b""
        self.finish_reason: str | None = None
        self.failed = False
        self.done = False
        self.cut = False
        self.chunks = 0

    def feed(self, data: bytes) -> bytes:
        """What the client gets for the next bytes from upstream. Raises ValueError on an event without an end."""
        data = self._rest + data
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        *events, self._rest = data.split(b"\n\n")
        if len(self._rest) > EVENT_BYTES_MAX:
            raise ValueError("an event of the stream has no end")
        return b"".join([self._pass(event) for event in events])

    @property
    def usage(self) -> UpstreamUsage | None:
        """The last usage seen, with the last report of cache blocks."""
        usage = read_usage(self._usage) if self._usage else None
        if usage is not None and usage.taximeter_cache is None and self._cache_report:
            report = read_usage(self._cache_report)
            usage.taximeter_cache = report.taximeter_cache if report else CacheReport()
        return usage

    def cut_ending(self) -> bytes:
        """What ends a stream that was cut: a chunk with the reason, and the usage where the client asked for it."""
        top = _TOP.decode(self._last_payload) if self._last_payload else {}
        content = b'"text":""' if b'"text"' in bytes(top.get("choices", b"")) else b'"delta":{}'
        usage = self._usage if self._usage and self._usage != b"null" else b""
        top["choices"] = msgspec.Raw(b'[{"index":0,' + content + b',"logprobs":null,"finish_reason":"length"}]')
        top.pop("usage", None)
        ending = b"data: " + _encode(top) + b"\n\n"
        if self._wants_usage and usage:
            last = {**top, "choices": [], "usage": msgspec.Raw(without_cache_report(usage))}
            ending += b"data: " + _encode(last) + b"\n\n"
        return ending

    def _is_beyond(self, chunk: _Chunk, usage: bytes) -> bool:
        if self._output_tokens_max is None:
            return False
        known = read_usage(usage) if usage != _NULL else None
        tokens = known.completion_tokens if known is not None and known.completion_tokens is not None else self.chunks
        return tokens > self._output_tokens_max

    def _pass(self, event: bytes) -> bytes:
        if self.cut:
            return b""
        if not event.startswith(b"data:"):
            return event + b"\n\n" if event else b""
        payload = event[5:].strip()
        if payload == b"[DONE]":
            self.done = True
            return b""
        try:
            chunk = _CHUNK.decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return event + b"\n\n"
        if bytes(chunk.error) != _NULL:
            self.failed = True
        usage = bytes(chunk.usage)
        if self._is_beyond(chunk, usage):
            self.cut, self.finish_reason = True, "length"
            return b""
        for choice in chunk.choices:
            self.finish_reason = choice.finish_reason or self.finish_reason
        self.chunks += bool(chunk.choices)
        self._last_payload = payload
        if usage == _NULL:
            return event + b"\n\n"
        self._usage = usage
        has_cache_report = _CACHE_MARK in usage
        if has_cache_report:
            self._cache_report = usage
        return self._without_usage(event, payload, chunk, has_cache_report)

    def _without_usage(self, event: bytes, payload: bytes, chunk: _Chunk, has_cache_report: bool) -> bytes:
        is_last = not chunk.choices
        if is_last and not self._wants_usage:
            return b""
        keeps = self._wants_usage_always or (is_last and self._wants_usage)
        if keeps and not has_cache_report:
            return event + b"\n\n"
        top = _TOP.decode(payload)
        if keeps:
            top["usage"] = msgspec.Raw(without_cache_report(top["usage"]))
        else:
            del top["usage"]
        return b"data: " + _encode(top) + b"\n\n"


def without_cache_report(usage: bytes | msgspec.Raw) -> bytes:
    """A usage object without the extension that names cache blocks: those are not for clients."""
    fields = _OBJECT.decode(usage)
    fields.pop("taximeter_cache", None)
    return _encode(fields)


def strip_cache_report(body: bytes) -> bytes:
    """A whole JSON answer without that extension."""
    if _CACHE_MARK not in body:
        return body
    top = _TOP.decode(body)
    if "usage" in top and bytes(top["usage"]) != _NULL:
        top["usage"] = msgspec.Raw(without_cache_report(top["usage"]))
    return _encode(top)


def error_event(body: bytes) -> bytes:
    """An error in the middle of a stream, as OpenAI sends it."""
    return b"data: " + body + b"\n\n"
