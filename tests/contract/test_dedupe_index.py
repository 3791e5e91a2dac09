"""What every dedupe index promises, on the one in memory and the one on disk."""

from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path

import pytest

from taximeter_streams.meter import front
from taximeter_streams.meter.dedupe import (
    Counted,
    DedupeIndex,
    MemoryIndex,
    RocksIndex,
    UnreadableIndexError,
    log_mark,
)
from taximeter_streams.meter.front import FrontFilter
from taximeter_streams.meter.kernel import load_kernel

A, B, C = (bytes([number]) * 16 for number in (1, 2, 3))
MARK = log_mark("log", 0)
BODY = bytes(range(16))


@pytest.fixture(params=["memory", "rocks", "filtered"])
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DedupeIndex]:
    kernel = load_kernel(tmp_path) if request.param == "filtered" else None
    made: DedupeIndex = MemoryIndex() if request.param == "memory" else RocksIndex(tmp_path / "index", kernel)
    yield made
    made.close()


def test_an_empty_index_knows_nothing(index: DedupeIndex) -> None:
    assert index.find([]) == []
    assert index.find([A, B]) == [None, None]
    assert index.known_to("log/0") is None


def test_what_is_marked_is_found_in_the_order_asked(index: DedupeIndex) -> None:
    first, second = Counted(BODY, MARK, 0), Counted(bytes(16), MARK, 2**40)
    index.mark("log/0", 2**40, [(A, first), (B, second)])
    assert index.find([B, C, A, B]) == [second, None, first, second]


def test_partitions_are_known_each_for_itself(index: DedupeIndex) -> None:
    index.mark("log/0", 0, [])
    index.mark("log/1", 7, [(A, Counted(BODY, MARK, 7))])
    index.mark("log/1", 9, [])
    assert [index.known_to(key) for key in ("log/0", "log/1", "log/2", "other/0")] == [0, 9, None, None]
    assert index.find([A]) == [Counted(BODY, MARK, 7)]


def test_marking_again_changes_nothing(index: DedupeIndex) -> None:
    for _time in range(2):
        index.mark("log/0", 5, [(A, Counted(BODY, MARK, 5))])
    assert index.find([A]) == [Counted(BODY, MARK, 5)]
    assert index.known_to("log/0") == 5


def test_an_identity_is_no_partition(index: DedupeIndex) -> None:
    index.mark("x" * 16, 3, [])
    assert index.find([b"x" * 16]) == [None]


def test_a_log_and_its_partitions_have_marks_of_their_own() -> None:
    marks = {log_mark(log_id, partition) for log_id in ("a", "b", "a/1") for partition in range(20)}
    assert len(marks) == 60
    assert {len(mark) for mark in marks} == {8}


@pytest.fixture
def reopened(tmp_path: Path) -> Callable[[], RocksIndex]:
    return lambda: RocksIndex(tmp_path / "index")


def test_the_index_on_disk_outlives_its_process(reopened: Callable[[], RocksIndex]) -> None:
    for offset, identity in enumerate((A, B)):
        index = reopened()
        index.mark("log/0", offset, [(identity, Counted(BODY, MARK, offset))])
        index.close()
    index = reopened()
    assert index.find([A, B, C]) == [Counted(BODY, MARK, 0), Counted(BODY, MARK, 1), None]
    assert index.known_to("log/0") == 1
    index.close()


def test_the_filter_knows_what_the_index_held_before_it_and_what_came_after(tmp_path: Path) -> None:
    kernel, identities = load_kernel(tmp_path), [number.to_bytes(16, "big") for number in range(3_000)]
    hashed = [blake2b(identity, digest_size=16).digest() for identity in identities]
    before, after, never = hashed[:1_000], hashed[1_000:2_000], hashed[2_000:]
    plain = RocksIndex(tmp_path / "index")
    plain.mark("log/0", 999, [(identity, Counted(BODY, MARK, 0)) for identity in before])
    plain.close()
    index = RocksIndex(tmp_path / "index", kernel)
    index.mark("log/0", 1_999, [(identity, Counted(BODY, MARK, 1)) for identity in after])
    found = index.find([*before, *after, *never])
    index.close()
    again = RocksIndex(tmp_path / "index", kernel)  # on the filter that the one before saved
    assert again.find([*before, *after, *never]) == found
    again.close()
    unfiltered = RocksIndex(tmp_path / "index")  # which makes the saved filter wrong
    unfiltered.mark("log/0", 2_000, [(never[0], Counted(BODY, MARK, 2))])
    unfiltered.close()
    last = RocksIndex(tmp_path / "index", kernel)
    assert last.find([never[0]]) == [Counted(BODY, MARK, 2)]
    last.close()
    assert found == [Counted(BODY, MARK, 0)] * 1_000 + [Counted(BODY, MARK, 1)] * 1_000 + [None] * 1_000


def test_what_cannot_be_read_is_never_called_new(tmp_path: Path) -> None:
    kernel = load_kernel(tmp_path)
    identities = [blake2b(number.to_bytes(4, "big"), digest_size=16).digest() for number in range(50_000)]
    whole = RocksIndex(tmp_path / "index", kernel)
    whole.mark("log/0", 1, [(identity, Counted(BODY, MARK, 0)) for identity in identities])
    whole.close()
    (tmp_path / "index" / "front.filter").unlink()  # so that the next one walks through all
    for table in (tmp_path / "index").glob("*.sst"):
        with table.open("r+b") as file:
            file.seek(table.stat().st_size // 3)
            file.write(bytes(8_192))
    index = RocksIndex(tmp_path / "index", kernel)
    index.wait_until_filtered()
    told = 0
    for identity in identities[::7]:
        try:
            assert index.find([identity]) == [Counted(BODY, MARK, 0)]
        except UnreadableIndexError as error:
            assert str(tmp_path / "index") in str(error)
            told += 1
    index.close()
    assert told, "what was overwritten is told"


def test_a_filter_that_has_become_too_full_is_made_again_with_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front, "BITS_MIN", 1 << 12)
    held: list[bytes] = []
    filter_ = FrontFilter(load_kernel(tmp_path), 0, lambda: iter(tuple(held)))
    for number in range(40):
        identities = [blake2b(bytes([number, at]), digest_size=16).digest() for at in range(100)]
        filter_.note(identities)
        held.extend(identities)
    filter_.wait_until_filled()
    never = [blake2b(b"never %d" % number, digest_size=16).digest() for number in range(1_000)]
    known, unknown = filter_.maybe_known(held), filter_.maybe_known(never)
    filter_.close()
    assert known is not None
    assert known.all()
    assert unknown is not None
    assert unknown.mean() < 0.2
