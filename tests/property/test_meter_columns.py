"""Folding by columns gives what folding row by row gives: the same rows, index, rejections and spend, for any bytes."""

import json
import random
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from struct import pack, unpack
from tempfile import mkdtemp
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from taximeter_schemas import wire
from taximeter_schemas.control_snapshot import ControlSnapshot
from taximeter_schemas.spend import SpendRecord
from taximeter_streams.meter.ahead import IndexAhead
from taximeter_streams.meter.batch import Arrivals, Batch, Place, RowBatch, RowFolding
from taximeter_streams.meter.column_batch import ColumnBatch, ColumnFolding
from taximeter_streams.meter.dedupe import MemoryIndex
from taximeter_streams.meter.kernel import Kernel, load_kernel
from taximeter_streams.meter.pricing import Pricing
from tests.metered_traffic import Traffic, declared
from tests.native_block import read_block
from tests.usage_events import usage

NOW = datetime(2026, 11, 24, 8, tzinfo=UTC)
NOW_MS = int(NOW.timestamp() * 1000)
TENANTS = ("acme", "globex")


@cache
def kernel() -> Kernel:
    """The compiled kernel, once a run."""
    return load_kernel(Path(mkdtemp(prefix="taximeter-kernel-")))


def pricing() -> Pricing:
    snapshot = ControlSnapshot()
    for record in declared(TENANTS, NOW):
        snapshot = snapshot.apply(record)
    return Pricing(snapshot)


def assert_same(batches: Iterable[list[bytes]]) -> None:
    """Both ways fold the batches, one after the other on an index of their own, to the same effect."""
    by_rows, by_columns, place, prices = MemoryIndex(), MemoryIndex(), Place("log", 3), pricing()
    row_folding, column_folding, offset = RowFolding(), ColumnFolding(kernel()), 10
    before: ColumnBatch | None = None
    for payloads in batches:
        arrivals = Arrivals(range(offset, offset + len(payloads)), [NOW_MS] * len(payloads), payloads)
        offset += len(payloads)
        counted = before.counted() if before is not None else ([], [])
        # Read ahead, it is folded while the batch before is not marked yet: to the same effect.
        ahead = column_folding.fold(arrivals, place, IndexAhead(by_columns, *counted), prices)
        if before is not None:
            before.mark(by_columns)
        rows = row_folding.fold(arrivals, place, by_rows, prices)
        columns = column_folding.fold(arrivals, place, by_columns, prices)
        assert isinstance(rows, RowBatch)
        assert isinstance(columns, ColumnBatch)
        assert isinstance(ahead, ColumnBatch)
        assert stored(columns) == stored(ahead) == expected(rows)
        assert columns.counts() == rows.counts()
        assert columns.rejected == rows.rejected
        assert spend_of(columns) == spend_of(rows)
        assert columns.counted() == rows.counted()
        rows.mark(by_rows)
        before = columns
    if before is not None:
        before.mark(by_columns)
        assert vars(by_columns) == vars(by_rows)


def stored(batch: ColumnBatch) -> dict[str, list[Any]]:
    columns = read_block(batch.encoded(0))
    columns.pop("inserted_at")
    return columns


def expected(batch: RowBatch) -> dict[str, list[Any]]:
    columns = dict(batch.columns)
    for name in ("queue_ms", "ttft_ms", "total_ms"):
        columns[name] = [value if value is None else unpack("f", pack("f", value))[0] for value in columns[name]]
    columns["arrived_at"] = [datetime.fromtimestamp(at / 1000, UTC) for at in columns["arrived_at"]]
    return columns


def spend_of(batch: Batch) -> list[tuple[str, SpendRecord]]:
    return [(tenant, SpendRecord.model_validate_json(payload)) for tenant, payload in batch.spend(NOW)]


def mostly(good: list[Any], odd: list[Any]) -> st.SearchStrategy[Any]:
    """One of the good values, or now and then an odd one."""
    return st.sampled_from(good * (1 + 25 * len(odd) // len(good)) + odd)


TAGS = mostly(["acme", "globex", "m", "n", "chat", "a.b"], ["", "-x", "ä", "a b", "x" * 129, 'q"', "tab\t"])
WHOLE = mostly([0, 1, 17, 100_000_000], [100_000_001, -1, 1.0, 1.5, True, None, "1", 10**19])
DECIMAL = mostly(
    [0, 0.0, 5, 0.1, 12.5, 0.001, 1234.567], [1e-5, 0.0009, 86_400_000.5, 123456789.125, 1e300, -0.0, None]
)
TIMES = st.sampled_from(
    [
        "2026-11-24T08:00:00Z", "2026-11-24T08:00:00.5Z", "2026-11-24T07:59:59.123456+00:00", "2026-11-24T09:30:00+01:30",
        "2026-11-24T08:00:00.1234567Z", "2026-10-20T08:00:00Z", "2026-11-25T08:00:00Z", "2026-11-25T07:59:58Z",
        "2026-02-30T08:00:00Z", "2026-11-24", "2026-11-24t08:00:00z", "2026-11-24T08:00:00", "1969-12-31T23:59:59Z",
        "2026-11-24T23:59:60Z", "2024-02-29T00:00:00Z", 5, None,
    ]
)  # fmt: skip


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    """A usage event, mostly good, in which some fields are replaced, added or left out, in some spelling."""
    event: dict[str, Any] = usage(draw(st.sampled_from(["a", "b", "c", 'd"\\', "e e", "x" * 257])))
    event["time"] = draw(st.just("2026-11-24T07:00:00Z") | TIMES)
    choices: dict[str, st.SearchStrategy[Any]] = {
        "tenant": TAGS, "model": TAGS, "feature": TAGS, "adapter": TAGS | st.none(), "request_id": TAGS | st.none(),
        "operation": mostly(["chat", "other"], ["Chat", None]), "outcome": mostly(["completed", "refused"], [""]),
        "service_tier": mostly(["standard", "batch"], [1]), "hop": WHOLE, "lease_id": st.sampled_from(["l1", "l2", None]),
        "tokens": st.fixed_dictionaries(
            {"output": st.sampled_from([0, 5])},
            optional={
                "uncached_input": WHOLE, "reasoning": st.sampled_from([0, 0, 2, 9]), "total": st.sampled_from([None, None, 5]),
                "cache_read": st.dictionaries(st.sampled_from(["gpu", "cpu", "disk", "provider"]), WHOLE),
                "cache_write": st.dictionaries(mostly(["5m", "1h"], ["five_minutes"]), WHOLE),
            },
        ),
        "timing": st.dictionaries(st.sampled_from(["queue_ms", "ttft_ms", "total_ms"]), DECIMAL),
        "worker": st.none() | st.fixed_dictionaries({"id": TAGS}, optional={"sequence": WHOLE, "gpu_seconds": DECIMAL}),
        "cache": st.fixed_dictionaries(
            {},
            optional={
                "pool": TAGS | st.none(), "block_size": WHOLE, "hit_blocks": WHOLE,
                "blocks": st.lists(mostly(["0123456789abcdef", "f" * 64], ["F" * 16, "0"]), max_size=4),
                "attribution": mostly(["engine", "none"], ["other"]),
            },
        ),
        "attributes": st.dictionaries(mostly(["team", "", "a b", "region"], ["ü", "é\n"]), TAGS, max_size=4),
    }  # fmt: skip
    for name in draw(st.lists(st.sampled_from(sorted(choices)), max_size=6, unique=True)):
        event["data"][name] = draw(choices[name])
    for name in draw(
        st.lists(st.sampled_from(["subject", "traceparent", "datacontenttype", "specversion"]), max_size=1)
    ):
        event[name] = draw(st.sampled_from(["acme", "1.0", "application/json", None, {"a": [1]}]))
    if draw(st.integers(0, 9)) == 0:
        event["data"].pop(draw(st.sampled_from(sorted(event["data"]))))
    text = json.dumps(event, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, None, 1])))
    return text.encode()


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    """A document, whole or with something cut out, put in or doubled."""
    document = draw(documents())
    damage = draw(st.sampled_from(["none"] * 12 + ["cut", "put", "double", "raw"]))
    at = draw(st.integers(0, len(document)))
    if damage == "cut":
        return document[:at]
    if damage == "put":
        put = draw(st.sampled_from([b"\0", b"\xff", b'"', b",", b'"id":"z",', b"0", b"}", b" ", b"\\u0041"]))
        return document[:at] + put + document[at:]
    if damage == "double":
        return document.replace(b'"output": ', b'"output": 1, "output": ')
    return draw(st.binary(max_size=40)) if damage == "raw" else document


@given(st.lists(st.lists(payloads(), min_size=1, max_size=8), min_size=1, max_size=3))
def test_any_bytes_are_folded_alike(batches: list[list[bytes]]) -> None:
    assert_same(batches)


def test_traffic_with_every_kind_of_message_is_folded_alike() -> None:
    traffic = Traffic(TENANTS, NOW, random.Random(5))
    assert_same([[message.payload for message in traffic.messages(400)] for _ in range(3)])


def test_the_kernel_is_sure_of_plain_events() -> None:
    """Or the test above would show nothing."""
    plain = json.dumps(
        usage(
            "a", subject=None, adapter="lora", request_id="r", tokens={"output": 3, "cache_read": {"gpu": 16}, "total": 19},
            timing={"ttft_ms": 12.5}, worker={"id": "w", "sequence": 7, "gpu_seconds": 0.25}, attributes={"team": "x", "a": "b"},
            cache={"pool": "p", "blocks": ["0123456789abcdef"], "hit_blocks": 1, "attribution": "engine"},
        )
    ).replace('"subject": null, ', "")  # fmt: skip
    scanned = kernel().scan([plain.encode(), b"{}", plain.replace("lora", "lo\\u0072a").encode()])
    assert scanned.sure.tolist() == [True, False, False]
    event = wire.decode(plain.encode())
    assert bytes(scanned.columns["identity"][0]) == wire.identity_hash(event)
    assert bytes(scanned.columns["body"][0]) == wire.body_hash(event)


def test_the_first_and_last_moments_of_the_calendar_are_read_right() -> None:
    moments = [datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day * 17, microseconds=day) for day in range(4_900)]
    documents = [json.dumps(usage("a") | {"time": moment.isoformat()}).encode() for moment in moments]
    scanned = kernel().scan(documents)
    assert scanned.sure.all()
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    assert scanned.columns["time"].tolist() == [(moment - epoch) // timedelta(microseconds=1) for moment in moments]
