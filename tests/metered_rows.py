"""Rows as the meter folds them, for tests of what comes after."""

from datetime import UTC, datetime

from taximeter_schemas import wire
from taximeter_schemas.events import Operation
from taximeter_streams.meter.folding import Examined, Folded, Received

DAY = datetime(2026, 11, 24, tzinfo=UTC)
LIST_PICO, METERED_PICO = 1_000, 700


def rated(
    offset: int,
    *,
    tenant: str = "acme",
    feature: str = "chat",
    model: str = "m",
    event_id: str | None = None,
    time: datetime = DAY,
    arrived_at: datetime = DAY,
    tokens: wire.Tokens | None = None,
    list_pico: int = LIST_PICO,
    metered_pico: int = METERED_PICO,
    lease_id: str | None = None,
    currency: str = "USD",
) -> Examined:
    """A rated row of an event that filled most of its fields."""
    event = wire.UsageEvent(
        id=event_id or f"e{offset}",
        source="svc",
        time=time,
        data=wire.UsageData(
            tenant=tenant,
            feature=feature,
            model=model,
            tokens=tokens or wire.Tokens(uncached_input=30, cache_read=wire.CacheRead(gpu=10), output=5, reasoning=2),
            operation=Operation.CHAT,
            cache=wire.Cache(pool="p", block_size=16, hit_blocks=1, blocks=["0123456789abcdef"]),
            timing=wire.Timing(queue_ms=1.5),
            worker=wire.Worker(id="w", sequence=offset, gpu_seconds=0.25),
            lease_id=lease_id,
            attributes={"team": "x"},
        ),
    )
    return Examined(
        Received(offset, int(arrived_at.timestamp() * 1000), b"{}"),
        event,
        wire.identity_hash(event),
        wire.body_hash(event),
        "rated",
        list_pico=list_pico,
        metered_pico=metered_pico,
        currency=currency,
        rate_card="default@1",
    )


def refused(offset: int, reason: str, *, tenant: str | None = "acme", disposition: str = "rejected") -> Examined:
    """A row that does not count, decoded when it has a tenant."""
    row = rated(offset, tenant=tenant or "-", list_pico=0, metered_pico=0, currency="")
    row.disposition, row.reason, row.rate_card = disposition, reason, ""
    if tenant is None:
        row.event, row.identity, row.body = None, bytes(16), bytes(16)
    return row


def folded(rows: list[Examined]) -> Folded:
    """A batch of those rows."""
    return Folded(rows)
