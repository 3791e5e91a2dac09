"""The shares of a worker's busy time add up to it, in whatever order sequences end and become known."""

import math

from hypothesis import given
from hypothesis import strategies as st

from taximeter_inference.vllm.busy_time import BusyTime

INTERVALS = st.lists(
    st.tuples(st.integers(1, 200), st.integers(1, 60)).map(lambda pair: (float(pair[0]), float(sum(pair)))),
    min_size=1,
    max_size=30,
)


def union_seconds(intervals: list[tuple[float, float]]) -> float:
    """The time that at least one interval covers, counted the plain way."""
    covered: set[int] = set()
    for start, end in intervals:
        covered.update(range(int(start), int(end)))
    return float(len(covered))


@given(INTERVALS, st.sets(st.integers(0, 29)))
def test_shares_add_up_to_the_busy_time(intervals: list[tuple[float, float]], unknown: set[int]) -> None:
    """Settled in order of their ends, with some starts unknown to the others until then."""
    ledger = BusyTime()
    order = sorted(range(len(intervals)), key=lambda index: intervals[index][1])
    shares = []
    for place, index in enumerate(order):
        start, end = intervals[index]
        others = [
            intervals[other][0] for other in order[place + 1 :] if other not in unknown and intervals[other][0] < end
        ]
        shares.append(ledger.settle(start, end, others))
        still_open = [intervals[other][0] for other in order[place + 1 :]]
        ledger.forget(min(still_open, default=end))
    assert all(share >= 0.0 for share in shares)
    busy = union_seconds(intervals)
    assert math.isclose(math.fsum(shares), busy, abs_tol=1e-6)
    assert math.isclose(ledger.busy_seconds, busy, abs_tol=1e-6)


@given(st.integers(2, 20))
def test_equal_sequences_share_equally(count: int) -> None:
    """A batch whose starts are all known is split evenly."""
    ledger = BusyTime()
    shares = [ledger.settle(1.0, 11.0, [1.0] * (count - 1 - done)) for done in range(count)]
    assert all(math.isclose(share, 10.0 / count) for share in shares)
