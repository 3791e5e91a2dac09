"""How far the meter says that it is behind: in events by the log's end, in seconds by what it has written and seen."""

from pathlib import Path

from taximeter_streams.meter.metrics import Lag, folder_bytes


class Bench:
    """A lag on a clock, with positions and ends that a test moves."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.positions = {0: 5}
        self.ends: dict[int, int | None] = {0: 5, 1: 9}
        self.lag = Lag(lambda: self.positions, self.ends.get, lambda: self.now)

    def look(self) -> dict[str, dict[str, float]]:
        """Events and seconds, by partition."""
        return {
            family.name.rpartition("_")[2]: {sample.labels["partition"]: sample.value for sample in family.samples}
            for family in self.lag.collect()
        }


def test_nothing_waits() -> None:
    assert Bench().look() == {"events": {"0": 0}, "seconds": {"0": 0}}


def test_what_waits_is_as_old_as_the_last_look_that_saw_nothing_wait() -> None:
    bench = Bench()
    bench.look()
    bench.now, bench.ends[0] = 1_060.0, 8
    assert bench.look() == {"events": {"0": 3}, "seconds": {"0": 60}}
    bench.now = 1_100.0
    assert bench.look()["seconds"] == {"0": 100}, "it grows while nothing moves"


def test_in_a_backlog_it_is_the_age_of_what_was_written_last() -> None:
    bench = Bench()
    bench.look()
    bench.now, bench.ends[0] = 5_000.0, 900
    bench.lag.written(0, 4_400_000)
    bench.positions[0] = 500
    assert bench.look() == {"events": {"0": 400}, "seconds": {"0": 600}}
    bench.positions[0] = 900
    assert bench.look() == {"events": {"0": 0}, "seconds": {"0": 0}}


def test_what_is_being_written_is_as_old_as_its_first_message_however_long_nobody_looked() -> None:
    bench = Bench()
    bench.lag.written(0, 1_000_000)
    bench.now, bench.ends[0] = 5_000.0, 8
    bench.lag.taken(0, 4_985_000)
    assert bench.look() == {"events": {"0": 3}, "seconds": {"0": 15}}
    bench.lag.written(0, 4_990_000)
    assert bench.look()["seconds"] == {"0": 10}, "it is written: what waits now came after it"


def test_a_batch_that_was_left_to_another_worker_is_forgotten_once_nothing_waits() -> None:
    bench = Bench()
    bench.lag.taken(0, 100_000)
    bench.look()
    bench.now, bench.ends[0] = 1_003.0, 6
    assert bench.look()["seconds"] == {"0": 3}


def test_an_idle_night_does_not_count() -> None:
    bench = Bench()
    bench.lag.written(0, 1_000_000)
    bench.now = 40_000.0
    bench.look()
    bench.now, bench.ends[0] = 40_002.0, 6
    assert bench.look()["seconds"] == {"0": 2}


def test_partitions_of_others_and_ends_that_nobody_knows_are_left_out() -> None:
    bench = Bench()
    bench.positions = {0: 5, 2: 7}
    assert bench.look()["events"] == {"0": 0}


def test_a_worker_that_just_started_counts_from_its_start() -> None:
    bench = Bench()
    bench.now, bench.ends[0] = 1_030.0, 50
    assert bench.look() == {"events": {"0": 45}, "seconds": {"0": 30}}


def test_the_size_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "b").write_bytes(b"123")
    assert folder_bytes(tmp_path) == 8
