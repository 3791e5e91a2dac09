"""One declared thing, as the book keeps it and as it travels."""

from dataclasses import dataclass
from typing import Any

from taximeter_schemas.control import ControlKind


@dataclass(frozen=True, slots=True)
class Declared:
    """Its kind, its id (of a rate card the full name, "default@3"), and its body."""

    kind: ControlKind
    key: str
    body: dict[str, Any]
