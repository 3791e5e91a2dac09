"""The tier of the cache that a KV connector is: where the prompt tokens that it loaded into the engine had been kept. Pure.

vLLM says how many tokens of a prompt its connector brought, not from where, so the server's --kv-transfer-config decides, or,
where that does not say it either, a setting.
"""

from collections.abc import Mapping
from typing import Any, Literal

Tier = Literal["gpu", "cpu", "disk"]
DEFAULT: Tier = "cpu"
_TIERS: Mapping[str, Tier] = {
    "OffloadingConnector": "cpu",
    "SimpleCPUOffloadConnector": "cpu",
    "HiSparseConnector": "cpu",
    "ExampleConnector": "disk",
    "HF3FSKVConnector": "disk",
    # From the GPU of another worker.
    "NixlConnector": "gpu",
    "NixlPullConnector": "gpu",
    "NixlPushConnector": "gpu",
    "MooncakeConnector": "gpu",
    "MoRIIOConnector": "gpu",
}


def tier_of(kv_transfer_config: Any) -> Tier | None:
    """The tier of the connector that vLLM was started with; None where the configuration does not tell."""
    return _tier(kv_transfer_config.kv_connector, kv_transfer_config.kv_connector_extra_config or {})


def has_connector(kv_transfer_config: Any) -> bool:
    """Whether anything but the engine's own cache can bring tokens."""
    return kv_transfer_config is not None and kv_transfer_config.kv_connector is not None


def _tier(name: str | None, extra: Mapping[str, Any]) -> Tier | None:
    if name == "MultiConnector":
        parts = extra.get("connectors", ())
        found = {_tier(part.get("kv_connector"), part.get("kv_connector_extra_config") or {}) for part in parts}
        return found.pop() if len(found) == 1 else None
    if name == "SimpleCPUOffloadConnector" and extra.get("kv_offload_backend") == "disk":
        return "disk"
    if name == "OffloadingConnector" and extra.get("spec_name", "CPUOffloadingSpec") != "CPUOffloadingSpec":
        return None
    return _TIERS.get(name or "")
