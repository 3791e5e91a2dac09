"""The attack of the prompt-leakage paper (NDSS 2025), in small: who was asked about, found by what a shared cache answers.

A victim sends a prompt that begins with one of a few names and goes on with a long text. The attacker knows the names and
the text. It sends each candidate once, and guesses the one that came from the cache: by the reported count of cached tokens,
or, where a server reports none, by the time to the first token.
"""

import random
import time
from dataclasses import dataclass
from statistics import median

from tests.vllm.worker_process import VllmWorker

NAMES = ("Ada", "Bob", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal")
ROUNDS = 8
_TEXT = "The patient came with pain in the chest, and was sent home with the advice to rest. "


@dataclass(frozen=True)
class ProbeResult:
    """How often the attacker was right, of ROUNDS, and its medians in milliseconds for right and wrong candidates."""

    found_by_count: int
    found_by_time: int
    right_ms: float
    wrong_ms: float

    def __str__(self) -> str:
        return (
            f"found by count {self.found_by_count}/{ROUNDS}, by time {self.found_by_time}/{ROUNDS}; "
            f"first token after {self.right_ms:.1f} ms where the victim had asked, {self.wrong_ms:.1f} ms elsewhere"
        )


def probe(worker: VllmWorker, seed: int = 7) -> ProbeResult:
    """Let the attacker guess ROUNDS times among NAMES."""
    chance = random.Random(seed)
    found_by_count = found_by_time = 0
    right, wrong = [], []
    for round_number in range(ROUNDS):
        secret = chance.choice(NAMES)
        prompts = {name: f"{name}, case {round_number}. " + _TEXT * 26 for name in NAMES}
        answer = worker.post(
            "/v1/completions",
            {"model": "tiny", "prompt": prompts[secret], "max_tokens": 1},
            worker.headers("victim"),
        )
        assert answer.status_code == 200, answer.text
        seen = {name: _ask(worker, prompts[name]) for name in chance.sample(NAMES, len(NAMES))}
        counts = [cached for cached, _ in seen.values()]
        found_by_count += max(counts) > 0 and seen[secret][0] == max(counts) and counts.count(max(counts)) == 1
        found_by_time += min(seen, key=lambda name: seen[name][1]) == secret
        right.append(seen[secret][1])
        wrong += [seconds for name, (_, seconds) in seen.items() if name != secret]
    return ProbeResult(found_by_count, found_by_time, median(right) * 1_000, median(wrong) * 1_000)


def _ask(worker: VllmWorker, prompt: str) -> tuple[int, float]:
    """The cached tokens that the server reports to the attacker, and the seconds to its first token."""
    began = time.perf_counter()
    answer = worker.post(
        "/v1/completions", {"model": "tiny", "prompt": prompt, "max_tokens": 1}, worker.headers("attacker")
    )
    took = time.perf_counter() - began
    details = answer.json()["usage"]["prompt_tokens_details"] or {}
    return details.get("cached_tokens") or 0, took
