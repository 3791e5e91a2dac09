"""vLLM workers that meter themselves: `--middleware taximeter_inference.vllm.Middleware`, or `WorkerMeter` around an engine.

vLLM itself is imported only once an engine is there.
"""

from taximeter_inference.vllm.errors import (
    DriftError,
    ForeignAdapterError,
    ForeignTagsError,
    UntaggedError,
    WorkerError,
)
from taximeter_inference.vllm.middleware import Middleware
from taximeter_inference.vllm.settings import WorkerSettings
from taximeter_inference.vllm.worker import WorkerMeter

__all__ = [
    "DriftError",
    "ForeignAdapterError",
    "ForeignTagsError",
    "Middleware",
    "UntaggedError",
    "WorkerError",
    "WorkerMeter",
    "WorkerSettings",
]
