"""Usage events for tests, as mappings and as JSON."""

import json
from typing import Any

from taximeter_schemas import UsageEvent


def usage(event_id: str, **data: Any) -> dict[str, Any]:
    """A good event of tenant acme; `data` replaces what it says."""
    tags = {"tenant": "acme", "feature": "chat", "model": "m", "tokens": {"uncached_input": 3, "output": 2}}
    return {
        "specversion": "1.0",
        "id": event_id,
        "source": "svc",
        "type": "taximeter.usage.v1",
        "time": "2026-11-24T08:00:00Z",
        "data": tags | data,
    }


def usage_event(event_id: str, **data: Any) -> UsageEvent:
    """The same as a model."""
    return UsageEvent.model_validate_json(json.dumps(usage(event_id, **data)))
