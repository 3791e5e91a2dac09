"""What a workload is made of: requests to the gateway, and the tenants they are drawn for."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request to the gateway: who asks for what, and how long the answer is to be."""

    tenant: str
    feature: str
    model: str
    prompt: str
    output_tokens: int
    stream: bool = False
    embedding: bool = False
    headers: dict[str, str] = field(default_factory=dict)


def skewed_weights(count: int, exponent: float = 1.1) -> list[float]:
    """Weights of a few large tenants and a long tail: a Zipf law over ranks 1 to count."""
    return [1 / rank**exponent for rank in range(1, count + 1)]


def draw_tenants(tenants: Sequence[str], draws: int, seed: int) -> Iterator[str]:
    """Draw a tenant for each request, skewed towards the first ones; the same seed draws the same."""
    chooser = random.Random(seed)
    return iter(chooser.choices(tenants, weights=skewed_weights(len(tenants)), k=draws))


def block_marker(block: str | int, tokens: int) -> str:
    """A word that the simulated model server reads as one prefix block of that many tokens."""
    return f"<|block:{block}:{tokens}|>"
