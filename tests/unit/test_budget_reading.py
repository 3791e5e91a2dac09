"""A message that was passed over is read after all, and a gap of the log itself ends nothing."""

from hypothesis import given
from hypothesis import strategies as st

from taximeter_streams.budgets.reading import Reading, Step


def test_a_message_that_was_passed_over_is_read_after_all() -> None:
    reading: Reading[int] = Reading()
    steps = [reading.look(0, offset)[0] for offset in (7, 8, 11, 12)]
    assert steps == [Step.HANDLE, Step.HANDLE, Step.GO_BACK, Step.PASS]
    assert reading.expected[0] == 9
    assert [reading.look(0, offset) for offset in (9, 10, 11, 12)] == [(Step.HANDLE, 0)] * 4


def test_a_gap_of_the_log_is_told_and_passed() -> None:
    reading: Reading[int] = Reading()
    assert [reading.look(0, offset)[0] for offset in (7, 11, 12)] == [Step.HANDLE, Step.GO_BACK, Step.PASS]
    assert [reading.look(0, offset) for offset in (11, 12)] == [(Step.HANDLE, 3), (Step.HANDLE, 0)]


def test_what_comes_again_is_handled_again() -> None:
    reading: Reading[int] = Reading()
    assert [reading.look(0, offset) for offset in (7, 8, 6, 7, 8, 9)] == [(Step.HANDLE, 0)] * 6


def test_a_partition_that_was_elsewhere_begins_anew() -> None:
    reading: Reading[int] = Reading()
    for partition in (0, 1):
        reading.look(partition, 5)
    reading.keep({1})
    assert reading.look(0, 90) == (Step.HANDLE, 0)
    assert reading.look(1, 90)[0] is Step.GO_BACK


@given(st.lists(st.sampled_from([Step.HANDLE, Step.PASS]), max_size=40), st.data())
def test_every_message_of_the_log_is_handled_whatever_is_dropped(drops: list[Step], data: st.DataObject) -> None:
    """A log with holes, read by a framework that drops some messages as it hands them over, at most once each."""
    log = sorted(data.draw(st.sets(st.integers(0, 60), min_size=1)))
    dropped = {offset for offset, fate in zip(log, drops, strict=False) if fate is Step.PASS} - {log[0]}
    reading: Reading[int] = Reading()
    handled: list[int] = []
    place, turns = 0, 0
    while place < len(log):
        turns += 1
        assert turns < 10_000, "it goes round for ever"
        offset = log[place]
        place += 1
        if offset in dropped and offset != log[-1]:
            dropped.discard(offset)
            continue
        step, _missing = reading.look(0, offset)
        if step is Step.HANDLE:
            handled.append(offset)
        elif step is Step.GO_BACK:
            place = next(index for index, one in enumerate(log) if one >= reading.expected[0])
    assert sorted(set(handled)) == log
