"""Taximeter's front door: `from taximeter import UsageProducer, UsageEvent`. Light: it needs the base install alone."""

from taximeter_producers import UsageProducer
from taximeter_schemas import UsageEvent

__all__ = ["UsageEvent", "UsageProducer"]
