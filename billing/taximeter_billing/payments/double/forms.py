"""Stripe's request bodies: form encoding with nested keys, `lines[0][metadata][k]=v`. Pure."""

import re
from typing import Any
from urllib.parse import parse_qsl

from taximeter_billing.payments.double.refusals import RefusedError

_KEY = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
_PART = re.compile(r"\[([^\]]*)\]")
FIELDS_MAX = 20_000
DEPTH_MAX = 8


def parse_form(text: str) -> dict[str, Any]:
    """Nested objects and lists from a form body or a query. Values stay texts; "lines[0]" and "lines[]" make lists.

    Raises RefusedError for what is no form.
    """
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=FIELDS_MAX)
    except ValueError:
        raise RefusedError(400, f"more than {FIELDS_MAX} parameters") from None
    root: dict[str, Any] = {}
    for key, value in pairs:
        match = _KEY.fullmatch(key)
        path = [match[1], *_PART.findall(match[2])] if match else []
        if not path or len(path) > DEPTH_MAX or not _place(root, path, value):
            raise RefusedError(400, f"Invalid parameter name: {key[:80]}", code="parameter_unknown")
    return {key: value if key == "metadata" else _lists(value) for key, value in root.items()}


def whole(value: Any, name: str) -> int:
    """A parameter that must be a whole number. Raises RefusedError."""
    if not isinstance(value, str) or not re.fullmatch(r"-?\d{1,18}", value):
        raise RefusedError(400, f"Invalid integer: {value}", code="parameter_invalid_integer", parameter=name)
    return int(value)


def _place(node: dict[str, Any], path: list[str], value: str) -> bool:
    for part in path[:-1]:
        below = node.setdefault(part or str(len(node)), {})
        if not isinstance(below, dict):
            return False
        node = below
    last = path[-1] or str(len(node))
    if isinstance(node.get(last), dict):
        return False
    node[last] = value
    return True


def _lists(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    items = {key: value if key == "metadata" else _lists(value) for key, value in node.items()}
    if items and all(key.isdigit() for key in items):
        return [items[key] for key in sorted(items, key=int)]
    return items
