"""Words that several adapters meet: service tiers, engines that one runs oneself, and what is wrong with an event. Pure."""

from pydantic import ValidationError

from taximeter_schemas.events import ServiceTier

OWN_ENGINES = frozenset({"vllm", "hosted_vllm", "sglang"})
"""Providers whose cache is one's own, on one's own GPU."""

_TIERS = {
    "flex": ServiceTier.BATCH,
    "batch": ServiceTier.BATCH,
    "priority": ServiceTier.PRIORITY,
    "scale": ServiceTier.PROVISIONED,
    "provisioned": ServiceTier.PROVISIONED,
}


def service_tier(name: object) -> ServiceTier:
    """A provider's name of a tier as ours: flex has batch's price at those who sell it; what is not known is standard."""
    return _TIERS.get(str(name).lower(), ServiceTier.STANDARD)


def first_problem(error: Exception) -> str:
    """The first thing that keeps values from being an event, with the field's name."""
    if not isinstance(error, ValidationError):
        return str(error)
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
