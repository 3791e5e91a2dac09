"""Answers in OpenAI's shapes, as vLLM fills them."""

from dataclasses import dataclass
from uuid import uuid4

import msgspec

from taximeter.embedded.upstream.engine import Generation

_encode = msgspec.json.Encoder().encode
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Reporting:
    """How usage is reported in a stream: at its end, and on every chunk."""

    at_end: bool
    continuously: bool


class AnswerShape:
    """The shape of one answer: a chat's or a completion's, whole or in chunks."""

    def __init__(self, chat: bool, model: str, created: int) -> None:
        self._chat = chat
        self._id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid4().hex}"
        self._head = {"model": model, "created": created}

    def whole(self, generation: Generation) -> bytes:
        """The answer to a request that does not stream."""
        text = _text(0, generation.emitted)
        content: dict[str, object] = (
            {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        )
        kind = "chat.completion" if self._chat else "text_completion"
        return _encode(
            {
                "id": self._id,
                "object": kind,
                **self._head,
                "choices": [{"index": 0, **content, "logprobs": None, "finish_reason": generation.reason}],
                "usage": generation.usage(with_blocks=True),
            }
        )

    def opening(self, generation: Generation, reporting: Reporting) -> bytes:
        """The first chunk of a chat, which names the role; nothing for a completion."""
        if not self._chat:
            return b""
        return self._chunk({"delta": {"role": "assistant", "content": ""}}, None, generation, reporting, True)

    def part(self, generation: Generation, tokens: int, reporting: Reporting) -> bytes:
        """A chunk with the last `tokens` tokens; the last one carries the reason for the end."""
        text = _text(generation.emitted - tokens, generation.emitted)
        content: dict[str, object] = {"delta": {"content": text}} if self._chat else {"text": text}
        reason = generation.reason if generation.emitted == generation.length else None
        first = not self._chat and generation.emitted == tokens
        return self._chunk(content, reason, generation, reporting, first)

    def closing(self, generation: Generation, reporting: Reporting) -> bytes:
        """The end of a stream: the usage, where asked for, and the mark."""
        if not reporting.at_end:
            return DONE
        return self._event({"choices": [], "usage": generation.usage(with_blocks=True)}) + DONE

    def _chunk(
        self,
        content: dict[str, object],
        reason: str | None,
        generation: Generation,
        reporting: Reporting,
        with_blocks: bool,
    ) -> bytes:
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": reason}
        usage = {"usage": generation.usage(with_blocks)} if reporting.continuously else {}
        return self._event({"choices": [choice], **usage})

    def _event(self, fields: dict[str, object]) -> bytes:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return b"data: " + _encode({"id": self._id, "object": kind, **self._head, **fields}) + b"\n\n"


def _text(first: int, after: int) -> str:
    """Words that differ from one position to the next, so that a lost or doubled chunk is seen."""
    return "".join(f"w{position} " for position in range(first, after))


def embeddings(model: str, texts: int, tokens: int) -> bytes:
    """The answer to an embeddings request: small vectors that mean nothing."""
    data = [{"object": "embedding", "index": index, "embedding": [0.0, 1.0, 0.0, -1.0]} for index in range(texts)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None}
    return _encode({"id": f"embd-{uuid4().hex}", "object": "list", "model": model, "data": data, "usage": usage})


def models(names: tuple[str, ...], created: int) -> bytes:
    """The answer to GET /v1/models."""
    served = [{"id": name, "object": "model", "created": created, "owned_by": "taximeter"} for name in names]
    return _encode({"object": "list", "data": served})
