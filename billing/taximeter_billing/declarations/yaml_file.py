"""Reads YAML as it is meant for money: a key that stands twice is refused, where a parser would keep the last in silence."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from taximeter_billing.errors import DeclarationError


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping; refuses a key that stands twice."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
            if isinstance(key.value, str):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def load(path: Path) -> object:
    """The file's content. Raises DeclarationError with the place of the fault."""
    try:
        content: object = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        raise DeclarationError(f"{path}: {error}") from None
    return content
