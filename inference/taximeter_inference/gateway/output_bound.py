"""How long an answer may become when its client did not say: learnt from what the tenant's requests to that model took. Pure.

The bound is what a request reserves and what the model server is told, so no answer passes it. It starts safe, follows the
longest answers of late with room to spare, and doubles when an answer was cut, so that cutting does not last.
"""

from collections import OrderedDict
from dataclasses import dataclass

SAMPLES_MIN = 4
"""Answers before the history is believed."""
ROOM_NUMERATOR, ROOM_DENOMINATOR = 3, 2
STEP_TOKENS = 32
FORGETTING_DIVISOR = 64
"""The longest answer fades by this part with each answer that is shorter."""
HISTORIES_MAX = 20_000


@dataclass(slots=True)
class _History:
    samples: int = 0
    peak: int = 0


class OutputBounds:
    """Bounds by tenant and model, in tokens. `start` holds before anything is known; none is below `least` or above `most`."""

    def __init__(self, start: int, least: int, most: int) -> None:
        self._start = start
        self._least = min(least, start)
        self._most = max(most, start)
        self._histories: OrderedDict[tuple[str, str], _History] = OrderedDict()

    def bound(self, tenant: str, model: str) -> int:
        """The bound for the next answer."""
        known = self._histories.get((tenant, model))
        if known is None or known.samples < SAMPLES_MIN:
            return max(self._start, min(self._most, known.peak)) if known else self._start
        roomy = known.peak * ROOM_NUMERATOR // ROOM_DENOMINATOR
        return min(self._most, max(self._least, -(-roomy // STEP_TOKENS) * STEP_TOKENS))

    def useful(self, tenant: str, model: str) -> int:
        """The shortest bound that cuts few answers: what is worth offering when the budget pays for no more."""
        known = self._histories.get((tenant, model))
        return min(self.bound(tenant, model), max(1, known.peak) if known and known.samples else self._least)

    def learn(self, tenant: str, model: str, output_tokens: int, was_cut: bool) -> None:
        """An answer took that many tokens; `was_cut` says that it ended at a bound that its client had not stated."""
        known = self._histories.setdefault((tenant, model), _History())
        self._histories.move_to_end((tenant, model))
        known.samples += 1
        wanted = output_tokens * 2 if was_cut else output_tokens
        known.peak = max(wanted, known.peak - known.peak // FORGETTING_DIVISOR)
        if len(self._histories) > HISTORIES_MAX:
            self._histories.popitem(last=False)
