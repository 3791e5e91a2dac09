"""Stripe's request bodies: form encoding with nested keys, `lines[0][metadata][k]=v`. Pure."""

import re
from typing import Any
from urllib.parse import parse_qsl

_PART = re.compile(r"\[([^\]]*)\]")


def parse_form(text: str) -> dict[str, Any]:
    """Nested objects and lists from a form body or a query. Values stay texts; "lines[0]" and "lines[]" make lists."""
    root: dict[str, Any] = {}
    for key, value in parse_qsl(text, keep_blank_values=True):
        head, _, rest = key.partition("[")
        path = [head, *_PART.findall("[" + rest if rest else "")]
        _place(root, path, value)
    return {key: _lists(value) for key, value in root.items()}


def _place(node: dict[str, Any], path: list[str], value: str) -> None:
    for part in path[:-1]:
        node = node.setdefault(part or str(len(node)), {})
    node[path[-1] or str(len(node))] = value


def _lists(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    items = {key: _lists(value) for key, value in node.items()}
    if items and all(key.isdigit() for key in items):
        return [items[key] for key in sorted(items, key=int)]
    return items
