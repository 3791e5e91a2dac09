"""The demo's workload: a day of five tenants, then a night in which one tenant's agent runs away. Seeded, so it repeats."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from taximeter.workload.requests import PlannedRequest

CHAT_MODEL, LARGE_MODEL, EMBEDDING_MODEL = "llama-3.1-8b", "llama-3.1-70b", "embed-small"
_VOCABULARY = """invoice tenant ledger prompt cache token budget reset window region model queue batch stream answer
clause contract refund ticket shipment parcel sensor turbine patient ward lesson grade forecast margin audit"""
_WORDS = _VOCABULARY.split()


@dataclass(frozen=True, slots=True)
class Habit:
    """How one tenant uses one feature: how often, with which model, and how much of its prompt is always the same."""

    tenant: str
    feature: str
    model: str
    weight: int
    shared_words: int
    own_words: int
    output_tokens: int
    stream: bool = False


def _system_prompt(name: str, words: int) -> str:
    chooser = random.Random(f"system/{name}")
    return " ".join(chooser.choices(_WORDS, k=words))


def plan_day(habits: Sequence[Habit], requests: int, seed: int) -> Iterator[PlannedRequest]:
    """A day's requests, drawn by the habits' weights. Tenants with the same feature share its system prompt."""
    chooser = random.Random(seed)
    for habit in chooser.choices(habits, weights=[habit.weight for habit in habits], k=requests):
        yield _request(habit, chooser)


def plan_night(runaway: Habit, requests: int, seed: int) -> Iterator[PlannedRequest]:
    """A night's requests: the same agent, over and over."""
    chooser = random.Random(f"night/{seed}")
    for _ in range(requests):
        yield _request(runaway, chooser)


def _request(habit: Habit, chooser: random.Random) -> PlannedRequest:
    own = " ".join(chooser.choices(_WORDS, k=max(1, int(habit.own_words * chooser.uniform(0.5, 1.5)))))
    prompt = f"{_system_prompt(habit.feature, habit.shared_words)} {own}"
    output = max(1, int(habit.output_tokens * chooser.uniform(0.3, 1.7)))
    return PlannedRequest(
        habit.tenant,
        habit.feature,
        habit.model,
        prompt,
        output,
        stream=habit.stream,
        embedding=habit.model == EMBEDDING_MODEL,
    )
