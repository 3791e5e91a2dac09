"""A vendor's usage object, read field by field, so that every complaint names the vendor and the field. Pure."""

from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import ParamSpec, Protocol, Self, runtime_checkable

from pydantic import ValidationError

from taximeter_producers.errors import UsageShapeError
from taximeter_schemas.events import TOKENS_MAX, Tokens


@runtime_checkable
class SdkUsage(Protocol):
    """The usage object of a vendor's Python SDK: a pydantic model."""

    def model_dump(self) -> dict[str, object]:
        """The object's fields."""
        ...


UsageObject = Mapping[str, object] | SdkUsage
"""A usage object as parsed JSON, or as the model of a vendor's SDK."""


class UsageFields:
    """Counts by name. A field that is absent and one that is null are the same; a count is a whole number of tokens."""

    def __init__(self, vendor: str, usage: object, path: str = "usage") -> None:
        fields = usage.model_dump() if isinstance(usage, SdkUsage) and not isinstance(usage, type) else usage
        if not isinstance(fields, Mapping):
            raise UsageShapeError(f"{vendor}: {path} is not an object but {type(usage).__name__}")
        self._vendor = vendor
        self._fields: Mapping[object, object] = fields
        self._path = path

    def count(self, *names: str) -> int | None:
        """The count under the first of the names that is there. Raises UsageShapeError when it is no count."""
        for name in names:
            value = self._fields.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= TOKENS_MAX:
                raise UsageShapeError(f"{self._vendor}: {self._path}.{name} is not a number of tokens: {value!r:.64}")
            return value
        return None

    def required(self, *names: str) -> int:
        """Like `count`, but raises UsageShapeError when none is there: an unknown count is not zero."""
        found = self.count(*names)
        if found is None:
            raise UsageShapeError(f"{self._vendor}: {self._path} has no {' or '.join(names)}")
        return found

    def inner(self, *names: str) -> Self | None:
        """The object under the first of the names that is there. Raises UsageShapeError when it is no object."""
        for name in names:
            if (value := self._fields.get(name)) is not None:
                return type(self)(self._vendor, value, f"{self._path}.{name}")
        return None

    def items(self, *names: str) -> Iterator[Self]:
        """The objects of the list under the first of the names that is there."""
        for name in names:
            value = self._fields.get(name)
            if value is None:
                continue
            if not isinstance(value, list | tuple):
                raise UsageShapeError(f"{self._vendor}: {self._path}.{name} is not a list but {type(value).__name__}")
            for place, item in enumerate(value):
                yield type(self)(self._vendor, item, f"{self._path}.{name}[{place}]")
            return

    def text(self, name: str) -> str | None:
        """The text under the name, if it is one."""
        value = self._fields.get(name)
        return value if isinstance(value, str) else None

    def present(self) -> dict[str, object]:
        """All fields that are not null."""
        return {str(name): value for name, value in self._fields.items() if value is not None}


P = ParamSpec("P")


def bounded(read: Callable[P, Tokens]) -> Callable[P, Tokens]:
    """A reader whose sums beyond TOKENS_MAX raise UsageShapeError as well."""

    @wraps(read)
    def reader(*args: P.args, **kwargs: P.kwargs) -> Tokens:
        try:
            return read(*args, **kwargs)
        except ValidationError:
            raise UsageShapeError(f"more than {TOKENS_MAX} tokens of one class in one request") from None

    return reader
