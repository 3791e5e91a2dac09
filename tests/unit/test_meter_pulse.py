"""What a meter worker says of itself while it has no partitions."""

from taximeter_streams.meter.pulse import Pulse


def test_whoever_lost_its_partitions_is_alive_and_not_ready_and_names_them() -> None:
    pulse = Pulse(session_timeout_ms=10_000, linger_ms=200)
    pulse.assigned = True
    assert pulse.ready([0, 1])[0]
    pulse.lost = frozenset({1, 0})
    ready, state = pulse.ready([])
    assert (ready, state["lost"]) == (False, [0, 1])
    assert "Kafka" in str(state["trouble"])
    assert pulse.alive()[0]
    pulse.lost = frozenset()
    assert pulse.ready([0, 1])[0]


def test_whoever_asked_for_partitions_and_has_no_answer_is_not_ready_and_says_so() -> None:
    pulse = Pulse(session_timeout_ms=10_000, linger_ms=200)
    ready, state = pulse.ready([])
    assert (ready, state["trouble"]) == (False, "waiting for Kafka to assign partitions")
    pulse.assigned = True
    assert pulse.ready([])[0], "others may have them all"
