"""The disk spool: order, limit, torn tails, damage, and taking over from a process that is gone."""

import json
from pathlib import Path

import pytest

from taximeter_producers.errors import SpoolBusyError, SpoolFullError
from taximeter_producers.frames import Ending, SpoolRecord, decode_frames, encode_frame
from taximeter_producers.spool import Spool

LIMIT = 1_000_000


def record(number: int, size: int = 20) -> SpoolRecord:
    return SpoolRecord(f"e{number}".encode(), str(number).encode().rjust(size, b"."))


def drained(spool: Spool) -> list[SpoolRecord]:
    records: list[SpoolRecord] = []
    while (segment := spool.oldest()) is not None:
        records += segment.read()
        spool.drop(segment)
    return records


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.seg"))


def test_records_come_back_in_order_over_many_segments(tmp_path: Path) -> None:
    spool = Spool(tmp_path, LIMIT, segment_bytes_max=100)
    wanted = [record(number) for number in range(50)]
    for first in range(0, 50, 5):
        spool.append(wanted[first : first + 5])
    assert len(segments(tmp_path)) > 5
    assert spool.size_bytes == sum(r.frame_bytes for r in wanted)
    assert drained(spool) == wanted
    assert spool.size_bytes == 0 and not segments(tmp_path)


def test_the_next_process_gets_what_is_left_in_order(tmp_path: Path) -> None:
    first = Spool(tmp_path, LIMIT, segment_bytes_max=100)
    first.append([record(number) for number in range(20)])
    delivered = first.oldest()
    assert delivered is not None
    first.append([record(number) for number in range(20, 25)])
    first.drop(delivered)
    first.close()
    second = Spool(tmp_path, LIMIT)
    second.append([record(25)])
    assert drained(second) == [record(number) for number in range(20, 26)]


def test_a_full_spool_takes_nothing_and_keeps_what_it_has(tmp_path: Path) -> None:
    spool = Spool(tmp_path, bytes_max=3 * record(0).frame_bytes)
    spool.append([record(0), record(1)])
    with pytest.raises(SpoolFullError):
        spool.append([record(2), record(3)])  # both or none
    spool.append([record(2)])
    assert drained(spool) == [record(0), record(1), record(2)]
    spool.append([record(3)])


@pytest.mark.parametrize("kept", range(1, encode_frame(record(1)).__len__()))
def test_a_torn_tail_is_left_out(kept: int) -> None:
    whole, torn = encode_frame(record(0)), encode_frame(record(1))[:kept]
    assert decode_frames(whole + torn) == ([record(0)], len(whole), Ending.TORN)


def test_a_spool_with_a_torn_tail_is_used_on(tmp_path: Path) -> None:
    spool = Spool(tmp_path, LIMIT)
    spool.append([record(0), record(1)])
    spool.close()
    (segment,) = segments(tmp_path)
    segment.write_bytes(segment.read_bytes()[:-3])
    again = Spool(tmp_path, LIMIT)
    again.append([record(2)])
    assert drained(again) == [record(0), record(2)]


def test_damage_is_kept_for_people_to_look_at(tmp_path: Path) -> None:
    spool = Spool(tmp_path, LIMIT)
    spool.append([record(0), record(1), record(2)])
    spool.close()
    (segment,) = segments(tmp_path)
    content = bytearray(segment.read_bytes())
    content[record(0).frame_bytes + 12] ^= 1
    segment.write_bytes(content)
    again = Spool(tmp_path, LIMIT)
    assert drained(again) == [record(0)]
    assert segment.with_suffix(".damaged").read_bytes() == content
    again.append([record(3)])  # a number of its own, not that of the damaged one
    assert drained(again) == [record(3)]


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    spool = Spool(tmp_path, LIMIT)
    with pytest.raises(SpoolBusyError, match="producer id"):
        Spool(tmp_path, LIMIT)
    spool.close()
    Spool(tmp_path, LIMIT).close()


def test_what_can_never_be_delivered_is_set_aside(tmp_path: Path) -> None:
    spool = Spool(tmp_path, LIMIT)
    spool.set_aside(record(7), "too large")
    (line,) = (tmp_path / "set-aside.jsonl").read_text().splitlines()
    assert json.loads(line) == {"key": "e7", "value": record(7).value.decode(), "reason": "too large"}
