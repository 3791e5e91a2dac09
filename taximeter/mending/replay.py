"""Sends rejected messages again: those that would count now, each noted with where it stands, so that it is sent once."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from clickhouse_connect.driver.client import Client

from taximeter.mending.changes import ChangeError, changed
from taximeter.mending.payloads import payload_of, read_rejected
from taximeter.mending.rejected import Place, Rejected, judge, replays_by_place
from taximeter.mending.sending import Placed, Sender, await_stored
from taximeter_schemas.control_snapshot import ControlSnapshot
from taximeter_schemas.rejections import RejectedEvent

CHUNK = 1_000
METER_TRIES = 10
METER_PAUSE_SECONDS = 1.0
"""The meter hears of a new tenant a moment late: how often, and after what pause, the first one is sent again."""

_NOTED = (
    *("log_id", "partition", "offset", "replay_log_id", "replay_partition", "replay_offset"),
    *("changes", "replayed_by", "replayed_at"),
)


@dataclass(slots=True)
class Replayed:
    """What a run did: where each message sent stands now, why others were left, and how many the meter has yet to store."""

    sent: dict[Place, Placed] = field(default_factory=dict)
    left: dict[Place, str] = field(default_factory=dict)
    waiting: int = 0


def replay(
    client: Client,
    sender: Sender,
    servers: str,
    log_id: str,
    snapshot: ControlSnapshot,
    chosen: Sequence[Rejected],
    changes: Sequence[str],
    actor: str,
    *,
    dry_run: bool = False,
    wait_seconds: float = 60.0,
    progress: Callable[[str], None] = lambda _line: None,
) -> Replayed:
    """Send what would count now. Killed, or run twice, it counts each event once."""
    done = Replayed()
    for one in chosen:
        if not one.open:
            done.left[one.place] = one.state
    wanted = [one for one in chosen if one.open]
    records = read_rejected(servers, wanted, lambda read: progress(f"{read:,} rejected messages read"))
    payloads = _mended(wanted, records, changes, done)
    verdicts = judge(client, payloads, snapshot.tenants, datetime.now(UTC))
    done.left |= {place: verdict.problem for place, verdict in verdicts.items() if verdict.event is None}
    ready = [
        (place, verdict.event.id.encode(), payloads[place])
        for place, verdict in verdicts.items()
        if verdict.event is not None
    ]
    if dry_run:
        done.sent = {place: Placed(-1, -1) for place, _key, _payload in ready}
        return done
    # The first alone, to see that the meter knows of what was mended; then many at a time.
    for chunk, tries in (
        (ready[:1], METER_TRIES),
        *((ready[at : at + CHUNK], 1) for at in range(1, len(ready), CHUNK)),
    ):
        if not chunk:
            break
        stored = _sent(client, sender, log_id, chunk, changes, actor, wait_seconds, tries, done)
        progress(f"{len(done.sent):,} of {len(ready):,} sent")
        done.waiting += 0 if stored else len(chunk)
    return done


def _sent(
    client: Client,
    sender: Sender,
    log_id: str,
    chunk: Sequence[tuple[Place, bytes, bytes]],
    changes: Sequence[str],
    actor: str,
    wait_seconds: float,
    tries: int,
    done: Replayed,
) -> bool:
    """Send a chunk, note it, and wait; again when the meter rejects it, until the tries are spent. False: not stored in time."""
    while True:
        placed = sender.send((key, payload) for _place, key, payload in chunk)
        sent = dict(zip((place for place, _key, _payload in chunk), placed, strict=True))
        _note(client, log_id, sent, changes, actor)
        done.sent |= sent
        if not await_stored(client, log_id, placed, wait_seconds):
            return False
        tries -= 1
        if not tries or not _any_rejected(client, log_id, placed):
            return True
        time.sleep(METER_PAUSE_SECONDS)


def _any_rejected(client: Client, log_id: str, placed: Sequence[Placed]) -> bool:
    places = {(log_id, to.partition, to.offset) for to in placed}
    replays, _originals = replays_by_place(client)
    return any(one.place in places and one.disposition == "rejected" for each in replays.values() for one in each)


def _mended(
    wanted: Sequence[Rejected], records: dict[Place, RejectedEvent], changes: Sequence[str], done: Replayed
) -> dict[Place, bytes]:
    payloads: dict[Place, bytes] = {}
    for one in wanted:
        record = records.get(one.place)
        if record is None:
            done.left[one.place] = "the message itself is not in usage.rejected.v1 any more"
        elif record.payload_bytes_cut:
            done.left[one.place] = (
                f"too large: {record.payload_bytes_cut} bytes of it were cut off; send a smaller event"
            )
        else:
            try:
                payloads[one.place] = changed(payload_of(record), changes)
            except ChangeError as error:
                done.left[one.place] = str(error)
    return payloads


def _note(client: Client, log_id: str, sent: dict[Place, Placed], changes: Sequence[str], actor: str) -> None:
    now = datetime.now(UTC)
    rows = [[*place, log_id, to.partition, to.offset, "; ".join(changes), actor, now] for place, to in sent.items()]
    client.insert("rejected_replays", rows, column_names=_NOTED)
