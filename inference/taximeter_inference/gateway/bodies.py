"""What a client sent, and what goes upstream instead: the tenant's salt, usage on every chunk, a bound that holds. Pure."""

from dataclasses import dataclass, replace
from typing import Any

import msgspec

from taximeter_inference.gateway.errors import InvalidJsonError, InvalidRequestError
from taximeter_inference.gateway.salt import STRIPPED_FIELDS
from taximeter_inference.gateway.tags import is_tag
from taximeter_schemas.events import Operation

OUTPUT_TOKENS_MAX = 100_000_000
UNBOUNDED_TOKENS = 100_000_000
TEMPLATE_TOKENS = 64
"""What a chat's template adds to a message at most, by a wide margin."""
CHOICES_MAX = 1_000
_BOUND_FIELDS = ("max_completion_tokens", "max_tokens")

Fields = dict[str, Any]
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class ClientBody:
    """A parsed request body. `output_tokens_max` is the client's own bound on each of `answers` answers, if it has one."""

    fields: Fields
    model: str
    stream: bool
    wants_usage: bool
    wants_usage_always: bool
    output_tokens_max: int | None
    answers: int
    client_salt: str | None
    size: int = 0

    @property
    def tokens_at_most(self) -> int:
        """A bound on the prompt's tokens without a tokenizer: none that falls back to bytes makes more of the body than it has.

        Token ids count for themselves, and the template of a chat adds some to each message. Nothing bounds what is only
        linked to, an image say.
        """
        messages = self.fields.get("messages")
        if messages is None:
            return self.size
        return self.size + TEMPLATE_TOKENS * (1 + len(messages)) if isinstance(messages, list) else UNBOUNDED_TOKENS

    @property
    def prompts(self) -> list[str | list[int]]:
        """The texts (or token ids) of a completion or an embedding, one each."""
        given = self.fields.get("prompt", self.fields.get("input"))
        if isinstance(given, list) and not (given and all(type(item) is int for item in given)):
            return given
        return [] if given is None else [given]


def read_body(raw: bytes, operation: Operation) -> ClientBody:
    """Parse a body. Raises InvalidJsonError and InvalidRequestError."""
    try:
        fields = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidJsonError(f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InvalidJsonError("the body must be a JSON object")
    model = fields.get("model")
    if not isinstance(model, str) or not is_tag(model):
        raise InvalidRequestError("model is required: the name of a model, up to 128 letters, digits and . _ : / @ + -")
    stream = fields.get("stream") or False
    options = fields.get("stream_options") or {}
    salt = fields.get("cache_salt")
    links = b"_url" in raw or b'"file_id"' in raw
    if not isinstance(stream, bool) or not isinstance(options, dict) or not isinstance(salt, str | None):
        raise InvalidRequestError("stream, stream_options or cache_salt is not valid")
    wants_usage = bool(options.get("include_usage"))
    generates = operation is not Operation.EMBEDDING
    return ClientBody(
        fields,
        model,
        stream and generates,
        wants_usage,
        wants_usage and bool(options.get("continuous_usage_stats")),
        _output_tokens_max(fields) if generates else 0,
        _answers(fields),
        salt,
        UNBOUNDED_TOKENS if links else len(raw),
    )


def with_model(body: ClientBody, model: str) -> ClientBody:
    """The same request for another model."""
    return replace(body, model=model, fields={**body.fields, "model": model})


def upstream_body(body: ClientBody, salt: str, output_tokens_max: int | None) -> bytes:
    """The body for the model server. `output_tokens_max` is added where the client stated no bound."""
    fields = {name: value for name, value in body.fields.items() if name not in STRIPPED_FIELDS}
    fields["cache_salt"] = salt
    if body.stream:
        options = fields.get("stream_options") or {}
        fields["stream_options"] = {**options, "include_usage": True, "continuous_usage_stats": True}
    if body.output_tokens_max is None and output_tokens_max is not None:
        fields["max_tokens"] = output_tokens_max
    return _encode(fields)


def _output_tokens_max(fields: Fields) -> int | None:
    for name in _BOUND_FIELDS:
        if fields.get(name) is not None:
            return _whole(fields, name, OUTPUT_TOKENS_MAX)
    return None


def _answers(fields: Fields) -> int:
    """How many answers one body asks for: choices, times prompts."""
    choices = max(
        1, *(_whole(fields, name, CHOICES_MAX) for name in ("n", "best_of") if fields.get(name) is not None), 1
    )
    prompt = fields.get("prompt")
    several = isinstance(prompt, list) and bool(prompt) and not all(type(item) is int for item in prompt)
    return choices * (len(prompt) if several and isinstance(prompt, list) else 1)


def _whole(fields: Fields, name: str, largest: int) -> int:
    value = fields[name]
    if type(value) is not int or not 0 <= value <= largest:
        raise InvalidRequestError(f"{name} must be a whole number from 0 to {largest}")
    return value
