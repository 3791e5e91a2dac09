"""The usage event: one per finished or aborted request, in a CloudEvents 1.0 JSON envelope.

This pydantic model is the schema that people see; the hot path decodes the same bytes with the msgspec structs in
`wire`, and a property test proves that both accept and reject the same. Token counts are disjoint: uncached input,
cache reads by tier, cache writes by lifetime and output add up; reasoning is within output.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

import msgspec
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

EVENT_TYPE: Literal["taximeter.usage.v1"] = "taximeter.usage.v1"
TOKENS_MAX = 100_000_000
"""More tokens than this in one class of one request is absurd, and rejected."""

# `$(?!\n)` instead of `$`: Python's `$` also matches before a final newline.
TAG_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}$(?!\n)"
ID_PATTERN = r"^[\x21-\x7e]{1,256}$(?!\n)"
HASH_PATTERN = r"^[0-9a-f]{16,64}$(?!\n)"

Tag = Annotated[str, Field(pattern=TAG_PATTERN)]
Identifier = Annotated[str, Field(pattern=ID_PATTERN)]
TokenCount = Annotated[int, Field(ge=0, le=TOKENS_MAX)]
Milliseconds = Annotated[float, Field(ge=0, le=86_400_000)]


class Operation(StrEnum):
    """What the request asked for."""

    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"
    RERANK = "rerank"
    SCORE = "score"
    RESPONSE = "response"
    OTHER = "other"


class Outcome(StrEnum):
    """How the request ended."""

    COMPLETED = "completed"
    LENGTH = "length"
    ABORTED = "aborted"
    ERROR = "error"
    REFUSED = "refused"


class ServiceTier(StrEnum):
    """The service tier, which may have prices of its own."""

    STANDARD = "standard"
    BATCH = "batch"
    PRIORITY = "priority"
    PROVISIONED = "provisioned"


class Attribution(StrEnum):
    """Where the knowledge about cache blocks comes from."""

    ENGINE = "engine"
    INFERRED = "inferred"
    NONE = "none"


class _Strict(BaseModel):
    # Python's regex engine, as msgspec uses it, so that both decoders agree on every string.
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, regex_engine="python-re", allow_inf_nan=False)


class CacheRead(_Strict):
    """Input tokens served from a cache, by tier."""

    gpu: TokenCount = 0
    cpu: TokenCount = 0
    disk: TokenCount = 0
    provider: TokenCount = 0


class CacheWrite(_Strict):
    """Input tokens written to a cache that is paid for, by lifetime."""

    model_config = ConfigDict(populate_by_name=True)

    five_minutes: TokenCount = Field(0, alias="5m")
    one_hour: TokenCount = Field(0, alias="1h")


class Tokens(_Strict):
    """Disjoint token counts. `total`, where given, must equal their sum (reasoning is within output)."""

    uncached_input: TokenCount = 0
    cache_read: CacheRead = CacheRead()
    cache_write: CacheWrite = CacheWrite()
    output: TokenCount = 0
    reasoning: TokenCount = 0
    total: Annotated[int, Field(ge=0, le=8 * TOKENS_MAX)] | None = None


class Cache(_Strict):
    """The prefix blocks of the request, as HMACs per pool (never token ids); the first `hit_blocks` were served from cache."""

    pool: Tag | None = None
    block_size: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    hit_blocks: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    blocks: Annotated[list[Annotated[str, Field(pattern=HASH_PATTERN)]], Field(max_length=65_536)] = []
    attribution: Attribution = Attribution.NONE


class Timing(_Strict):
    """Durations in milliseconds."""

    queue_ms: Milliseconds | None = None
    ttft_ms: Milliseconds | None = None
    total_ms: Milliseconds | None = None


class Worker(_Strict):
    """Who measured it: a producer's id, its running number for this event, and GPU-seconds attributed to the request."""

    id: Identifier
    sequence: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    gpu_seconds: Annotated[float, Field(ge=0, le=1_000_000)] = 0.0


class UsageData(_Strict):
    """What was used, by whom, for what."""

    tenant: Tag
    feature: Tag
    model: Tag
    tokens: Tokens
    adapter: Tag | None = None
    operation: Operation = Operation.OTHER
    request_id: Identifier | None = None
    root_request_id: Identifier | None = None
    hop: Annotated[int, Field(ge=0, le=1_000)] = 0
    attempt: Annotated[int, Field(ge=0, le=1_000)] = 0
    outcome: Outcome = Outcome.COMPLETED
    cache: Cache = Cache()
    timing: Timing = Timing()
    worker: Worker | None = None
    service_tier: ServiceTier = ServiceTier.STANDARD
    lease_id: Identifier | None = None
    attributes: Annotated[
        dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=256)]], Field(max_length=32)
    ] = {}


_RFC3339 = msgspec.json.Decoder(Annotated[datetime, msgspec.Meta(tz=True)])


def parse_time(value: object) -> datetime:
    """An RFC 3339 text with its offset as an aware datetime, by the very parser of the hot path. Raises ValueError."""
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError("time needs an offset")
        return value
    if not isinstance(value, str):
        raise ValueError("time must be an RFC 3339 text")
    try:
        moment: datetime = _RFC3339.decode(msgspec.json.encode(value))
    except msgspec.MsgspecError as error:
        raise ValueError(f"not an RFC 3339 time with an offset: {error}") from None
    return moment


class UsageEvent(_Strict):
    """A usage event in its CloudEvents envelope. Identity is (tenant, source, id), without the time."""

    # CloudEvents allows extension attributes; they are tolerated, and not part of the identity or the body.
    model_config = ConfigDict(extra="ignore")

    specversion: Literal["1.0"] = "1.0"
    id: Identifier
    source: Identifier
    type: Literal["taximeter.usage.v1"] = EVENT_TYPE
    time: Annotated[datetime, BeforeValidator(parse_time), Field(json_schema_extra={"format": "date-time"})]
    subject: Tag | None = None
    datacontenttype: Literal["application/json"] | None = None
    data: UsageData

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if (problem := inconsistency(self)) is not None:
            raise ValueError(problem)
        return self

    @property
    def identity(self) -> tuple[str, str, str]:
        """(tenant, source, id): the same identity is the same event."""
        return self.data.tenant, self.source, self.id

    def to_json(self) -> bytes:
        """The wire form: compact JSON, defaults left out."""
        return self.model_dump_json(by_alias=True, exclude_defaults=False, exclude_none=True).encode()


def inconsistency(event: Any) -> str | None:
    """What in a well-formed event contradicts itself, or None. Serves the pydantic model and the msgspec struct alike."""
    data = event.data
    tokens = data.tokens
    if event.subject is not None and event.subject != data.tenant:
        return "subject differs from data.tenant"
    if tokens.reasoning > tokens.output:
        return "tokens do not add up: reasoning is more than output"
    if tokens.total is not None and tokens.total != total_tokens(tokens):
        return f"tokens do not add up: total is {tokens.total}, the parts are {total_tokens(tokens)}"
    if data.cache.blocks and data.cache.hit_blocks > len(data.cache.blocks):
        return "cache.hit_blocks is more than the number of cache.blocks"
    return None


def total_tokens(tokens: Any) -> int:
    """All tokens of a request, each counted once."""
    return int(input_tokens(tokens) + tokens.output)


def input_tokens(tokens: Any) -> int:
    """Input tokens of a request: uncached, read from a cache, and written to one, each counted once."""
    read, write = tokens.cache_read, tokens.cache_write
    cached = read.gpu + read.cpu + read.disk + read.provider + write.five_minutes + write.one_hour
    return int(tokens.uncached_input + cached)
