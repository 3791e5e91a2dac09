"""What clients may ask: the fields of OpenAI's requests (and vLLM's additions) that make a difference here.

Fields that are not named here are ignored, as vLLM does.
"""

from typing import Annotated

import msgspec

from taximeter.embedded.upstream.refusals import RefusedError

Count = Annotated[int, msgspec.Meta(ge=0)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0, le=60_000)]


class ContentPart(msgspec.Struct):
    """A part of a message; only text counts."""

    type: str = "text"
    text: str = ""


class ChatMessage(msgspec.Struct):
    """A message of a chat."""

    role: str
    content: str | list[ContentPart] | None = None

    @property
    def text(self) -> str:
        """All its text."""
        if isinstance(self.content, str):
            return self.content
        return " ".join(part.text for part in self.content or ())


class StreamOptions(msgspec.Struct):
    """Whether usage is reported at the end of a stream, and on every chunk."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class Extras(msgspec.Struct):
    """vLLM's free arguments: the length of the answer, the time for each of its tokens, and a failure after some of them."""

    simulated_output_tokens: Count | None = None
    simulated_token_ms: Milliseconds | None = None
    simulated_failure_after: Count | None = None


class GenerationRequest(msgspec.Struct):
    """A chat or a completion, or one of them to be tokenized."""

    model: str
    messages: list[ChatMessage] | None = None
    prompt: str | list[str] | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    n: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    cache_salt: str | None = None
    vllm_xargs: Extras | None = None

    def texts(self) -> list[str]:
        """The prompt. Raises RefusedError when there is none."""
        if self.messages:
            return [message.text for message in self.messages]
        if self.prompt:
            return [self.prompt] if isinstance(self.prompt, str) else self.prompt
        raise RefusedError(400, "messages or prompt is required", "BadRequestError")

    @property
    def output_tokens_max(self) -> int | None:
        """The client's bound on the answer."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class EmbeddingRequest(msgspec.Struct):
    """Texts to embed."""

    model: str
    input: str | list[str]
    cache_salt: str | None = None

    @property
    def texts(self) -> list[str]:
        """The texts, one result each."""
        return [self.input] if isinstance(self.input, str) else self.input


_GENERATION = msgspec.json.Decoder(GenerationRequest)
_EMBEDDING = msgspec.json.Decoder(EmbeddingRequest)


def read_generation(body: bytes) -> GenerationRequest:
    """Parse a chat, completion or tokenize request. Raises RefusedError (400)."""
    try:
        request = _GENERATION.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RefusedError(400, str(error), "BadRequestError") from None
    if request.n not in (None, 1):
        raise RefusedError(400, "only n = 1 is simulated", "BadRequestError")
    if isinstance(request.prompt, list) and len(request.prompt) != 1:
        raise RefusedError(400, "only one prompt is simulated", "BadRequestError")
    return request


def read_embedding(body: bytes) -> EmbeddingRequest:
    """Parse an embeddings request. Raises RefusedError (400)."""
    try:
        return _EMBEDDING.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RefusedError(400, str(error), "BadRequestError") from None
