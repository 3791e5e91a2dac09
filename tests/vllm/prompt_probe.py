"""The attack of the prompt-leakage paper (NDSS 2025), in small: what was asked, found by what a shared cache gives away.

A victim sends one of two prompts that differ in their first word. The attacker sends both, in random order, and guesses the one
that came from the cache: by the reported count of cached tokens, or, where a server reports none, by the time to the first
token. Whether times tell is a rank test's answer (Mann and Whitney, exact, one-sided) over the prompts that the victim had
sent and those that it had not.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import median

from tests.vllm.worker_process import VllmWorker

ROUNDS = 8
SIGNIFICANCE = 0.001
"""Of eight and eight times, complete separation has 1 in 12,870."""
_NAMES = ("Ada", "Bob", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal")
_TEXT = "The patient came with pain in the chest, and was sent home with the advice to rest. "
_REPEATED = 48


@dataclass(frozen=True)
class ProbeResult:
    """How often the attacker was right of ROUNDS, the chance that times like these mean nothing, and medians in milliseconds."""

    found_by_count: int
    found_by_time: int
    chance: float
    right_ms: float
    wrong_ms: float

    def __str__(self) -> str:
        return (
            f"found by count {self.found_by_count}/{ROUNDS}, by time {self.found_by_time}/{ROUNDS} (p = {self.chance:.2g});"
            f" first token after {self.right_ms:.1f} ms where the victim had asked, {self.wrong_ms:.1f} ms elsewhere"
        )


def probe(worker: VllmWorker, seed: int = 7) -> ProbeResult:
    """Let the attacker guess ROUNDS times."""
    chance = random.Random(seed)
    by_count = by_time = 0
    right, wrong = [], []
    for number in range(-1, ROUNDS):  # The first one warms up, and does not count.
        secret, other = (f"{name}, case {number}. " + _TEXT * _REPEATED for name in chance.sample(_NAMES, 2))
        _ask(worker, secret, "victim")
        seen = {prompt: _ask(worker, prompt, "attacker") for prompt in chance.sample((secret, other), 2)}
        (secret_cached, secret_seconds), (other_cached, other_seconds) = seen[secret], seen[other]
        if number >= 0:
            by_count += secret_cached > other_cached
            by_time += secret_seconds < other_seconds
            right.append(secret_seconds)
            wrong.append(other_seconds)
    return ProbeResult(by_count, by_time, rank_test(right, wrong), median(right) * 1_000, median(wrong) * 1_000)


def rank_test(lower: Sequence[float], higher: Sequence[float]) -> float:
    """The chance of ranks this low or lower for the first sample, were both drawn alike: Mann and Whitney's U, exactly."""
    u = sum(one > other for one in lower for other in higher)
    n, m = len(lower), len(higher)
    # ways[k][s]: how many choices of k of the ranks seen so far have the sum of their excess ranks s.
    ways = [[0] * (n * m + 1) for _ in range(n + 1)]
    ways[0][0] = 1
    for rank in range(n + m):
        for k in range(min(n, rank + 1), 0, -1):
            excess = rank - (k - 1)
            for total in range(n * m, excess - 1, -1):
                ways[k][total] += ways[k - 1][total - excess]
    return sum(ways[n][: u + 1]) / comb(n + m, n)


def _ask(worker: VllmWorker, prompt: str, tenant: str) -> tuple[int, float]:
    """The cached tokens that the server reports, and the seconds to its first (and only) token."""
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 1}
    began = time.perf_counter()
    answer = worker.post("/v1/completions", body, worker.headers(tenant))
    took = time.perf_counter() - began
    assert answer.status_code == 200, answer.text
    details = answer.json()["usage"]["prompt_tokens_details"] or {}
    return details.get("cached_tokens") or 0, took
