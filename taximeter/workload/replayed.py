"""Remembers which replays a data folder holds, so that the same replay run again sends nothing and changes nothing."""

import json
from hashlib import sha256
from pathlib import Path

from taximeter.workload.replay import ReplayPlan

_FILE = "replayed.json"


def replay_key(trace: Path, plan: ReplayPlan, pools: int, limit: int) -> str:
    """What makes two replays the same: the trace's bytes, the tenants, their pools, the seed, and how much is sent."""
    digest = sha256(trace.read_bytes()).hexdigest()
    return f"{digest}/tenants={len(plan.tenants)}/pools={pools}/seed={plan.seed}/limit={limit}"


def recall(data: Path, key: str) -> dict[str, int] | None:
    """The totals of that replay when the folder holds it whole, else None."""
    path = data / _FILE
    held: dict[str, dict[str, int]] = json.loads(path.read_text()) if path.exists() else {}
    return held.get(key)


def remember(data: Path, key: str, totals: dict[str, int]) -> None:
    """Note a replay that was sent and metered whole."""
    path = data / _FILE
    held = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**held, key: totals}, indent=2))
