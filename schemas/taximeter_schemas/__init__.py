"""What travels through Taximeter: usage events, rate cards, budgets, policies and topics. Pure: no I/O."""

from taximeter_schemas.events import UsageEvent
from taximeter_schemas.topics import TOPICS, Topic

__all__ = ["TOPICS", "Topic", "UsageEvent"]
