"""A span, whatever encoding it came in: what the adapter reads of it and nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass, field

AttributeValue = str | bool | int | float | tuple["AttributeValue", ...] | None


@dataclass(frozen=True, slots=True)
class Span:
    """A finished span. Ids are lower-case hex, times are nanoseconds since 1970, `failed` is its status."""

    trace_id: str
    span_id: str
    parent_span_id: str
    start_ns: int
    end_ns: int
    failed: bool
    attributes: Mapping[str, AttributeValue]
    resource: Mapping[str, AttributeValue] = field(default_factory=dict)

    def attribute(self, names: tuple[str, ...]) -> AttributeValue:
        """The value of the first name that is on the span, or else on its resource."""
        for name in names:
            for attributes in (self.attributes, self.resource):
                if (value := attributes.get(name)) not in (None, ""):
                    return value
        return None
