"""Counts prompts by the model's own tokenizer: its files, or its server's /tokenize; and remembers what it counted."""

from collections import OrderedDict
from dataclasses import dataclass
from hashlib import blake2b

import msgspec

from taximeter_inference.gateway.bodies import ClientBody, Fields
from taximeter_inference.gateway.errors import UpstreamRefusedError
from taximeter_inference.gateway.tokenizer_files import TokenizerFiles
from taximeter_inference.gateway.upstream import Upstream
from taximeter_schemas.events import Operation

COUNTS_REMEMBERED_MAX = 10_000
MODELS_REMEMBERED_MAX = 1_000
_CHAT_FIELDS = (
    "messages",
    "tools",
    "chat_template",
    "chat_template_kwargs",
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
    "mm_processor_kwargs",
)


@dataclass(slots=True)
class _Drift:
    """By how many tokens a model server went beyond what was counted, at most, and the longest count that this is known for."""

    more: int = 0
    counted: int = 1


class _Counted(msgspec.Struct):
    count: int


_encode = msgspec.json.Encoder().encode
_DECODER = msgspec.json.Decoder(_Counted)


class PromptCounter:
    """Counts the tokens of prompts before they are dispatched."""

    def __init__(self, upstream: Upstream, files: TokenizerFiles) -> None:
        self._upstream = upstream
        self._files = files
        self._counts: OrderedDict[bytes, int] = OrderedDict()
        self._drifts: dict[str, _Drift] = {}

    def worst(self, model: str, counted: int) -> int:
        """The tokens to expect at most for a prompt of so many: model servers may add some of their own."""
        drift = self._drifts.get(model)
        if drift is None:
            return counted
        return counted + -(-drift.more * max(counted, drift.counted) // drift.counted)

    def learn(self, model: str, counted: int, reported: int) -> None:
        """The model server reported so many tokens for a prompt that was counted here."""
        if reported <= counted or len(self._drifts) >= MODELS_REMEMBERED_MAX:
            return
        drift = self._drifts.setdefault(model, _Drift())
        more, longest = reported - counted, max(1, counted)
        if more * drift.counted > drift.more * longest:
            drift.more, drift.counted = more, longest

    async def count(self, body: ClientBody, operation: Operation) -> int:
        """The prompt's tokens. Raises UpstreamRefusedError (an unknown model, say), or that it was not reached in time.

        Where the model server has no tokenizer route, the body's length in bytes stands in: no tokenizer that falls back
        to bytes makes more tokens than that.
        """
        if operation is Operation.CHAT:
            chat = {name: body.fields[name] for name in _CHAT_FIELDS if name in body.fields}
            return await self._tokenize({"model": body.model, **chat})
        total = 0
        for prompt in body.prompts:
            total += await self.count_text(body.model, prompt) if isinstance(prompt, str) else len(prompt)
        return total

    async def count_text(self, model: str, text: str) -> int:
        """The tokens of a text."""
        return await self._tokenize({"model": model, "prompt": text}) if text else 0

    async def _tokenize(self, fields: Fields) -> int:
        payload = _encode(fields)
        mark = blake2b(payload, digest_size=16).digest()
        known = self._counts.get(mark)
        if known is not None:
            self._counts.move_to_end(mark)
            return known
        count = await self._count_by_files(fields, len(payload))
        if count is None:
            count = await self._ask_for_count(payload)
        self._counts[mark] = count
        if len(self._counts) > COUNTS_REMEMBERED_MAX:
            self._counts.popitem(last=False)
        return count

    async def _count_by_files(self, fields: Fields, size: int) -> int | None:
        model = fields["model"]
        if "prompt" in fields:
            return await self._files.count_text(model, fields["prompt"])
        return await self._files.count_chat(model, fields, size)

    async def _ask_for_count(self, payload: bytes) -> int:
        status, answer = await self._upstream.ask("/tokenize", payload)
        if status == 200:
            return _DECODER.decode(answer).count
        if status in (404, 405) and b"does not exist" not in answer:
            return len(payload)
        raise UpstreamRefusedError(status, answer)
