"""What the meter sends on always fits: a rejected message is whole, or cut with its place named; times fit their column."""

import base64
from datetime import UTC, datetime, timedelta, timezone

import pytest

from taximeter_schemas.rejections import RejectedEvent
from taximeter_streams.meter.columns import build_columns
from taximeter_streams.meter.folding import Examined, Received
from taximeter_streams.meter.publishing import CUT_BYTES_MAX, RECORD_BYTES_MAX, rejected_record
from taximeter_streams.meter.spending import spend_records
from tests.metered_rows import DAY, METERED_PICO, folded, rated, refused


def sent(payload: bytes) -> tuple[int, RejectedEvent]:
    """The length of the record's JSON, and the record as a reader gets it."""
    row = Examined(Received(7, int(DAY.timestamp() * 1000), payload), reason="malformed_json", detail="why")
    encoded, _record = rejected_record(row, 3, DAY)
    return len(encoded), RejectedEvent.model_validate_json(encoded)


@pytest.mark.parametrize(
    ("payload", "encoding"),
    [
        (b"", "utf-8"),
        (b"{", "utf-8"),
        ("{é".encode(), "utf-8"),
        (b"\xff\x00", "base64"),
        (b"x" * 1_030_000, "utf-8"),
    ],
)
def test_a_rejected_message_travels_whole(payload: bytes, encoding: str) -> None:
    _length, record = sent(payload)
    assert (record.payload_encoding, record.payload_bytes_cut) == (encoding, 0)
    assert payload == (record.payload.encode() if encoding == "utf-8" else base64.b64decode(record.payload))
    assert (record.partition, record.offset, record.arrived_at, record.event_id) == (3, 7, DAY, None)


@pytest.mark.parametrize(
    "payload",
    [
        b"x" * 2_000_000,
        b"\x01" * 1_000_000,  # six bytes each in JSON
        b"\xff" * 1_000_000,  # base64 is a third longer
        b"x" * (CUT_BYTES_MAX - 1) + "é".encode() * 500_000,  # the cut falls within a character
    ],
)
def test_what_would_not_fit_is_cut(payload: bytes) -> None:
    length, record = sent(payload)
    assert length <= RECORD_BYTES_MAX
    assert record.payload_bytes_cut == len(payload) - CUT_BYTES_MAX
    kept = record.payload.encode() if record.payload_encoding == "utf-8" else base64.b64decode(record.payload)
    assert kept == payload[:CUT_BYTES_MAX]


@pytest.mark.parametrize(
    "time",
    [
        datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14))),  # the year 0 in UTC
        datetime(9999, 12, 31, 23, 59, tzinfo=timezone(timedelta(hours=-14))),  # the year 10,000
    ],
)
def test_a_time_beyond_the_column_is_brought_to_its_edge(time: datetime) -> None:
    row = rated(0, time=time)
    row.disposition, row.reason = "rejected", "time_out_of_range"
    (stored,) = dict(build_columns(folded([row]), "log", 3))["time"]
    assert datetime(1970, 1, 1, tzinfo=UTC) <= stored <= datetime(2200, 1, 1, tzinfo=UTC)


def test_two_currencies_of_a_tenant_are_told_apart() -> None:
    rows = [rated(4), rated(5, currency="EUR"), refused(6, "conflict"), rated(7, currency="EUR"), rated(8)]
    records = spend_records(dict(build_columns(folded(rows), "log", 3)), DAY)
    told = [(item.first_offset, item.last_offset, item.currency, item.entries[0].amount_pico) for item in records]
    assert told == [(4, 4, "USD", METERED_PICO), (5, 7, "EUR", 2 * METERED_PICO), (8, 8, "USD", METERED_PICO)]
