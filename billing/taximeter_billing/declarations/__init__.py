"""Declarations: what operators write in YAML, planned against the book, then applied."""

from taximeter_billing.declarations.applying import Applied, apply_declarations, plan_file, republish
from taximeter_billing.declarations.plan import Change, Plan
from taximeter_billing.declarations.reading import read_file, read_mapping

__all__ = ["Applied", "Change", "Plan", "apply_declarations", "plan_file", "read_file", "read_mapping", "republish"]
