"""The engine: models with a prefix cache each, the length of answers, and the counters that are the truth about usage."""

from collections import Counter
from dataclasses import dataclass, field
from hashlib import blake2b

from taximeter.embedded.upstream.prefix_cache import CacheUse, PrefixCache
from taximeter.embedded.upstream.prompts import read_prompt
from taximeter.embedded.upstream.refusals import RefusedError, unknown_model
from taximeter.embedded.upstream.requests import EmbeddingRequest, Extras, GenerationRequest
from taximeter.embedded.upstream.settings import UpstreamSettings


@dataclass(slots=True)
class Generation:
    """One answer under way: `emitted` of `length` tokens are out, and then it ends for the `reason`.

    It breaks off once `failure_after` tokens are out.
    """

    model: str
    prompt_tokens: int
    cache: CacheUse
    length: int
    reason: str
    token_ms: float
    failure_after: int | None = None
    emitted: int = 0

    @property
    def fails_now(self) -> bool:
        """Whether the answer breaks off here."""
        return self.failure_after is not None and self.emitted >= self.failure_after

    def usage(self, with_blocks: bool) -> dict[str, object]:
        """OpenAI's usage object as of now; the blocks are an extension of it."""
        report: dict[str, object] = {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + self.emitted,
            "completion_tokens": self.emitted,
            "prompt_tokens_details": {"cached_tokens": self.cache.cached_tokens},
        }
        if with_blocks:
            report["taximeter_cache"] = self.cache.to_usage()
        return report


@dataclass
class Engine:
    """All models. Its counters go up when the work is done, whether or not a client hears of it."""

    settings: UpstreamSettings
    totals: Counter[str] = field(default_factory=Counter)
    by_model: dict[str, Counter[str]] = field(default_factory=dict)
    caches: dict[str, PrefixCache] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for model in self.settings.models:
            self.caches[model] = PrefixCache(self.settings.upstream_cache_blocks)
            self.by_model[model] = Counter()

    def begin(self, request: GenerationRequest) -> Generation:
        """Prefill a prompt. Raises RefusedError when the model is unknown or the request is too long."""
        prompt_tokens, cache = self._prefill(request.model, request.texts(), request.cache_salt)
        bound = self.settings.upstream_context_tokens - prompt_tokens
        if request.output_tokens_max is not None:
            bound = min(bound, request.output_tokens_max)
        wanted = self._answer_length(request, cache)
        extras = request.vllm_xargs or Extras()
        token_ms = extras.simulated_token_ms
        return Generation(
            request.model,
            prompt_tokens,
            cache,
            length=min(wanted, bound),
            reason="length" if wanted > bound else "stop",
            token_ms=self.settings.upstream_token_ms if token_ms is None else token_ms,
            failure_after=extras.simulated_failure_after,
        )

    def embed(self, request: EmbeddingRequest) -> int:
        """Embed texts, without a cache; returns their tokens. Raises RefusedError when the model is unknown."""
        self.check_model(request.model)
        tokens = read_prompt(request.texts, self.settings.upstream_block_tokens).tokens
        self._count(request.model, "requests", 1)
        self._count(request.model, "prompt_tokens", tokens)
        return tokens

    def emit(self, generation: Generation, tokens: int) -> None:
        """Count tokens of the answer as generated."""
        generation.emitted += tokens
        self._count(generation.model, "generated_tokens", tokens)

    def abort(self, generation: Generation) -> None:
        """The client left before the end."""
        self._count(generation.model, "aborted", 1)

    def check_model(self, model: str) -> None:
        """Raises RefusedError (404) when that model is not served."""
        if model not in self.caches:
            raise unknown_model(model)

    def stats(self) -> dict[str, object]:
        """The counters since the start, in all and by model."""
        names = ("requests", "aborted", "prompt_tokens", "cached_tokens", "generated_tokens")

        def counts(counter: Counter[str]) -> dict[str, int]:
            return {name: counter[name] for name in names}

        return {**counts(self.totals), "by_model": {model: counts(c) for model, c in self.by_model.items()}}

    def _prefill(self, model: str, texts: list[str], salt: str | None) -> tuple[int, CacheUse]:
        self.check_model(model)
        prompt = read_prompt(texts, self.settings.upstream_block_tokens)
        if prompt.tokens > self.settings.upstream_context_tokens:
            longest = self.settings.upstream_context_tokens
            raise RefusedError(
                400,
                f"This model's maximum context length is {longest} tokens; the prompt has {prompt.tokens}.",
                "BadRequestError",
            )
        cache = self.caches[model].use(prompt, salt or "")
        self._count(model, "requests", 1)
        self._count(model, "prompt_tokens", prompt.tokens)
        self._count(model, "cached_tokens", cache.cached_tokens)
        return prompt.tokens, cache

    def _answer_length(self, request: GenerationRequest, cache: CacheUse) -> int:
        if request.vllm_xargs is not None and request.vllm_xargs.simulated_output_tokens is not None:
            return request.vllm_xargs.simulated_output_tokens
        mark = cache.hashes[-1] if cache.hashes else " ".join(request.texts()).encode()
        drawn = blake2b(mark, digest_size=8, salt=str(self.settings.upstream_seed).encode()[:16]).digest()
        return 1 + int.from_bytes(drawn) % self.settings.upstream_output_tokens_max

    def _count(self, model: str, name: str, amount: int) -> None:
        self.totals[name] += amount
        self.by_model[model][name] += amount
