"""What the plugin reads of vLLM's own objects, as protocols: `drift` checks that the running vLLM still has it all."""

from collections.abc import Iterable, MutableMapping
from typing import Any, Protocol


class SequenceStats(Protocol):
    """vllm.v1.metrics.stats.RequestStateStats: engine times are monotonic, in seconds; 0.0 means not yet."""

    num_generation_tokens: int
    num_preemptions: int
    arrival_time: float
    queued_ts: float
    scheduled_ts: float
    first_token_ts: float
    last_token_ts: float
    first_token_latency: float


class PrefillStats(Protocol):
    """vllm.v1.metrics.stats.PrefillStats: where a prompt's tokens came from, as it was first scheduled."""

    num_cached_tokens: int
    num_external_cached_tokens: int


class Detokenizer(Protocol):
    """vllm.v1.engine.detokenizer.IncrementalDetokenizer."""

    def num_output_tokens(self) -> int:
        """How many tokens it has seen."""


class ParentRequest(Protocol):
    """vllm.v1.engine.parallel_sampling.ParentRequest: one prompt with several answers."""

    request_id: str


class SequenceState(Protocol):
    """vllm.v1.engine.output_processor.RequestState: one sequence in the engine."""

    request_id: str
    parent_req: ParentRequest | None
    request_index: int
    lora_name: str | None
    prompt_len: int
    num_cached_tokens: int
    is_prefilling: bool
    detokenizer: Detokenizer | None
    stats: SequenceStats | None


class EngineRequest(Protocol):
    """vllm.v1.engine.EngineCoreRequest, on its way into the engine."""

    request_id: str
    sampling_params: Any
    lora_request: Any
    cache_salt: str | None
    priority: int
    session_id: str | None


class OutputProcessor(Protocol):
    """vllm.v1.engine.output_processor.OutputProcessor: every sequence of every endpoint passes it."""

    request_states: MutableMapping[str, SequenceState]
    log_stats: bool

    def add_request(
        self, request: Any, prompt: Any, parent_req: Any = None, request_index: int = 0, queue: Any = None
    ) -> None:
        """A sequence enters."""

    def abort_requests(self, request_ids: Iterable[str], internal: bool) -> list[str]:
        """Sequences are given up."""

    def propagate_error(self, e: Exception) -> None:
        """The engine has failed."""
