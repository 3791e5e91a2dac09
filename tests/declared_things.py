"""Declarations as tests vary them and look at them."""

import copy
from typing import Any

from taximeter_billing.declarations import read_mapping
from taximeter_schemas.control import ControlKind


def changed(content: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """The declarations with one value changed ("tenants.0.currency"); an index behind the end appends."""
    content = copy.deepcopy(content)
    *places, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    target: Any = content
    for place in places:
        target = target[place]
    if isinstance(target, list) and last == len(target):
        target.append(value)
    else:
        target[last] = value
    return content


def bodies(content: dict[str, Any]) -> dict[tuple[ControlKind, str], dict[str, Any]]:
    """What each declared thing becomes in the log."""
    return {(thing.kind, thing.key): thing.body for thing in read_mapping(content)}
