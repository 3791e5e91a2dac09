"""What the meter rejected, what became of it since, and whether sending it again would help now.

A rejected message stays rejected: a replay is one more message, and its place says what became of it. It counts once, since its
identity is the event's own; an event that was accepted in between makes the replay a duplicate.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from clickhouse_connect.driver.client import Client

from taximeter.reconcile.scope import BEGINNING
from taximeter_schemas import wire
from taximeter_sql import query
from taximeter_streams.meter.validation import examine

LISTED_MAX = 100_000
_IDENTITIES_ASKED = 200
_CONFLICT = "conflict: its id was counted with another body; --set id=... gives it one of its own"

Place = tuple[str, int, int]
"""Log, partition, offset."""


class PlaceError(ValueError):
    """Names no message: a place is PARTITION/OFFSET, as the list shows it, or LOG/PARTITION/OFFSET."""

    def __str__(self) -> str:
        return f"{self.args[0]!r} names no message; a place is PARTITION/OFFSET as `taximeter rejected list` shows it"


@dataclass(frozen=True, slots=True)
class Replay:
    """A rejected message sent again. `disposition` is empty until the meter has stored it."""

    place: Place
    changes: str
    replayed_by: str
    replayed_at: datetime
    disposition: str
    reason: str

    @property
    def outcome(self) -> str:
        """For people."""
        match self.disposition:
            case "":
                return "sent, not stored yet"
            case "duplicate":
                return "replayed: had been counted"
            case "rejected":
                return f"replayed: rejected again ({self.reason})"
            case _:
                return f"replayed: {self.disposition}"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A rejected message as the warehouse knows it. `counted`: what the same event became that arrived another time."""

    place: Place
    arrived_at: datetime
    tenant: str
    reason: str
    source: str
    event_id: str
    counted: str
    replays: tuple[Replay, ...] = ()
    replay_of: Place | None = None

    @property
    def open(self) -> bool:
        """Whether it still counts nowhere, and was not sent again with success. A replay itself is not: its first is."""
        if self.replay_of is not None or self.counted:
            return False
        return not self.replays or self.replays[-1].disposition == "rejected"

    @property
    def state(self) -> str:
        """For people."""
        if self.replay_of is not None:
            return f"is a replay of {self.replay_of[1]}/{self.replay_of[2]}"
        if self.replays:
            return self.replays[-1].outcome
        return f"since then: {self.counted}" if self.counted else "open"


def list_rejected(
    client: Client,
    tenant: str | None = None,
    reason: str | None = None,
    since: datetime | None = None,
    limit: int = LISTED_MAX,
) -> list[Rejected]:
    """Rejected messages, newest first, with what became of each."""
    parameters = {"tenant": tenant or "", "reason": reason or "", "since": since or BEGINNING, "limit": limit}
    rows = client.query(query("rejected_rows"), parameters=parameters, tz_mode="aware").named_results()
    replays, replayed = replays_by_place(client)
    found = []
    for row in rows:
        place = (str(row["log_id"]), int(row["partition"]), int(row["offset"]))
        tenant_, why, source, event_id, counted = (
            str(row[name]) for name in ("tenant", "reason", "source", "event_id", "counted")
        )
        own = tuple(replays.get(place, ()))
        found.append(
            Rejected(place, row["arrived_at"], tenant_, why, source, event_id, counted, own, replayed.get(place))
        )
    return found


def replays_by_place(client: Client) -> tuple[dict[Place, list[Replay]], dict[Place, Place]]:
    """Replays by the place of what they repeat, and the other way round."""
    replays: dict[Place, list[Replay]] = defaultdict(list)
    originals: dict[Place, Place] = {}
    for row in client.query(query("rejected_replays"), tz_mode="aware").result_rows:
        original, place = (str(row[0]), int(row[1]), int(row[2])), (str(row[3]), int(row[4]), int(row[5]))
        changes, replayed_by, replayed_at, disposition, reason = row[6:]
        replays[original].append(Replay(place, changes, replayed_by, replayed_at, disposition, reason))
        originals[place] = original
    return replays, originals


def place_of(text: str, log_id: str) -> Place:
    """ "3/4711", or "kafka/3/4711". Raises PlaceError."""
    log, _, rest = text.rpartition("/")
    log, _, partition = log.rpartition("/")
    if not (partition.isdigit() and rest.isdigit()):
        raise PlaceError(text)
    return log or log_id, int(partition), int(rest)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What would become of a message sent now: `event` when it would count, else why not."""

    event: wire.UsageEvent | None
    problem: str = ""


def judge(
    client: Client, payloads: Mapping[Place, bytes], tenants: Iterable[str], now: datetime
) -> dict[Place, Verdict]:
    """Whether each message would count now, by the meter's own rules and by what was counted so far."""
    known = frozenset(tenants)
    now_ms = int(now.timestamp() * 1000)
    verdicts: dict[Place, Verdict] = {}
    events: dict[Place, wire.UsageEvent] = {}
    for place, payload in payloads.items():
        event, rejection = examine(payload, now_ms, known)
        if event is None or rejection is not None:
            why = f"{rejection.reason}: {rejection.detail}" if rejection else "it cannot be read"
            verdicts[place] = Verdict(None, f"would be rejected again: {why}")
        else:
            events[place] = event
    counted = _counted(client, [wire.identity_hash(event) for event in events.values()])
    for place, event in events.items():
        body = counted.get(wire.identity_hash(event))
        if body is None:
            verdicts[place] = Verdict(event)
        elif body == wire.body_hash(event):
            verdicts[place] = Verdict(None, "is counted already")
        else:
            verdicts[place] = Verdict(None, f"would be rejected again: {_CONFLICT}")
    return verdicts


def _counted(client: Client, identities: Sequence[bytes]) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for start in range(0, len(identities), _IDENTITIES_ASKED):
        asked = [identity.hex() for identity in identities[start : start + _IDENTITIES_ASKED]]
        rows = client.query(query("counted_bodies"), parameters={"identities": asked}).result_rows
        found |= {bytes.fromhex(identity): bytes.fromhex(body) for identity, body in rows}
    return found
