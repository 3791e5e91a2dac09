"""Adapters: usage as others report it, as disjoint tokens and usage events.

The functions here are pure and need the base install alone. `adapters.spans` turns OpenTelemetry GenAI spans into usage
events; `adapters.litellm` is a callback for LiteLLM.
"""

from taximeter_producers.adapters.anthropic import tokens_from_anthropic, tokens_from_anthropic_stream
from taximeter_producers.adapters.engines import tokens_from_lmcache, tokens_from_sglang, tokens_from_vllm
from taximeter_producers.adapters.gemini import tokens_from_gemini
from taximeter_producers.adapters.openai import tokens_from_openai, tokens_from_openrouter
from taximeter_producers.errors import UsageObjectError, UsageShapeError, UsageSumError

__all__ = [
    "UsageObjectError",
    "UsageShapeError",
    "UsageSumError",
    "tokens_from_anthropic",
    "tokens_from_anthropic_stream",
    "tokens_from_gemini",
    "tokens_from_lmcache",
    "tokens_from_openai",
    "tokens_from_openrouter",
    "tokens_from_sglang",
    "tokens_from_vllm",
]
