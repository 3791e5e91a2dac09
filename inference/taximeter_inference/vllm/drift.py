"""Whether the vLLM that runs is one that the plugin can hold on to: names, parameters and fields, looked at once at start-up.

Nothing is patched in vLLM's files; the hooks go onto the one OutputProcessor of the running engine. So what they rely on is
written down here, and a release that moves any of it is told by name instead of being metered wrongly.
"""

import inspect
from collections.abc import Callable, Iterable

from taximeter_inference.vllm.errors import DriftError

TESTED_VERSIONS = ("0.32",)
PARAMETERS = {
    "add_request": ("request", "prompt", "parent_req", "request_index", "queue"),
    "abort_requests": ("request_ids", "internal"),
    "propagate_error": ("e",),
    "process_outputs": ("engine_core_outputs",),
    "_update_stats_from_finished": ("req_state", "finish_reason", "iteration_stats"),
}
STATE_FIELDS = (
    "request_id",
    "parent_req",
    "request_index",
    "lora_name",
    "prompt_len",
    "num_cached_tokens",
    "is_prefilling",
    "detokenizer",
    "stats",
)
STATS_FIELDS = (
    "num_generation_tokens",
    "num_preemptions",
    "arrival_time",
    "queued_ts",
    "scheduled_ts",
    "first_token_ts",
    "last_token_ts",
    "first_token_latency",
)
PREFILL_FIELDS = ("num_cached_tokens", "num_external_cached_tokens")
OUTPUT_FIELDS = ("request_id", "prefill_stats")
REQUEST_FIELDS = ("request_id", "sampling_params", "lora_request", "cache_salt", "priority", "session_id")
REASONS = ("STOP", "LENGTH", "ABORT", "ERROR")


def check_vllm() -> str:
    """The version of a vLLM that is as the plugin knows it. Raises DriftError, which names what is not."""
    try:
        import vllm
        from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
        from vllm.v1.engine.output_processor import OutputProcessor, RequestState
        from vllm.v1.metrics.stats import PrefillStats, RequestStateStats
    except (ImportError, AttributeError) as error:
        raise DriftError(f"vLLM does not have what the metering plugin holds on to: {error}") from None
    version = str(getattr(vllm, "__version__", "unknown"))
    problems = find_problems(OutputProcessor, RequestState, RequestStateStats, EngineCoreRequest, FinishReason)
    problems += find_prefill_problems(EngineCoreOutput, PrefillStats)
    if problems:
        raise DriftError(
            f"vLLM {version} is not as the metering plugin knows it ({', '.join(TESTED_VERSIONS)}): {'; '.join(problems)}"
        )
    return version


def find_problems(processor: type, state: type, stats: type, request: type, reasons: type) -> list[str]:
    """What differs, in words; empty when nothing does."""
    problems = []
    for name, expected in PARAMETERS.items():
        method = getattr(processor, name, None)
        if method is None:
            problems.append(f"{processor.__name__}.{name} is gone")
        elif (found := _parameters(method))[: len(expected)] != expected or _more_required(method, len(expected)):
            problems.append(f"{processor.__name__}.{name} takes {found}")
    assigned = set(state.__init__.__code__.co_names)  # type: ignore[misc]
    problems += _missing(state, STATE_FIELDS, assigned)
    problems += _missing(stats, STATS_FIELDS, getattr(stats, "__dataclass_fields__", ()))
    problems += _missing(request, REQUEST_FIELDS, getattr(request, "__struct_fields__", ()))
    problems += _missing(reasons, REASONS, getattr(reasons, "__members__", ()))
    if "request_states" not in processor.__init__.__code__.co_names:  # type: ignore[misc]
        problems.append(f"{processor.__name__}.request_states is gone")
    return problems


def find_prefill_problems(output: type, prefill: type) -> list[str]:
    """What differs in what the engine says of a prompt's cached tokens, in words."""
    problems = _missing(output, OUTPUT_FIELDS, getattr(output, "__struct_fields__", ()))
    return problems + _missing(prefill, PREFILL_FIELDS, getattr(prefill, "__dataclass_fields__", ()))


def _parameters(method: Callable[..., object]) -> tuple[str, ...]:
    return tuple(name for name in inspect.signature(method).parameters if name != "self")


def _more_required(method: Callable[..., object], known: int) -> bool:
    parameters = [p for name, p in inspect.signature(method).parameters.items() if name != "self"]
    return any(
        parameter.default is inspect.Parameter.empty
        and parameter.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        for parameter in parameters[known:]
    )


def _missing(owner: type, names: tuple[str, ...], present: Iterable[str]) -> list[str]:
    there = set(present)
    return [f"{owner.__name__}.{name} is gone" for name in names if name not in there]
