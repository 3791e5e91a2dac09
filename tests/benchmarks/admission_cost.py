"""What admission costs a request with a lease in hand: `python -m tests.benchmarks.admission_cost`.

Processor time of one thread, so a busy machine disturbs it little: two hard budgets, a lease far from its end, the request
admitted and settled. Beside it: finding the caller, reading the tags, parsing the body.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from taximeter_inference.gateway.admit import Admission
from taximeter_inference.gateway.authenticate import authenticate
from taximeter_inference.gateway.bodies import read_body
from taximeter_inference.gateway.counting import PromptCounter
from taximeter_inference.gateway.leases import LeaseDesk
from taximeter_inference.gateway.output_bound import OutputBounds
from taximeter_inference.gateway.settings import GatewaySettings
from taximeter_inference.gateway.tags import read_tags
from taximeter_inference.gateway.tokenizer_files import TokenizerFiles
from taximeter_inference.gateway.upstream import Upstream
from taximeter_inference.gateway.waiting import WaitingRoom
from taximeter_schemas.budgets import Budget, LeaseClose, LeaseGrant, LeaseRequest
from taximeter_schemas.control_snapshot import ControlSnapshot
from taximeter_schemas.events import Operation
from taximeter_schemas.rate_cards import Price, RateCard
from taximeter_schemas.tenants import ApiKey, Tenant

ROUNDS, REQUESTS = 7, 3_000
HEADERS = [
    (b"authorization", b"Bearer sk-1"),
    (b"x-taximeter-feature", b"chat"),
    (b"content-type", b"application/json"),
]
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "word " * 50}], "max_tokens": 16}).encode()


def declared() -> ControlSnapshot:
    """One tenant with a key, a price, and two hard budgets."""
    now = datetime.now(UTC)
    key = ApiKey(id="k1", tenant="acme", key_sha256=hashlib.sha256(b"sk-1").hexdigest())
    prices = (Price(model="m", uncached_input=1, output=4),)
    card = RateCard(version=1, effective_from=now - timedelta(days=1), recorded_at=now, prices=prices)
    budgets = (
        Budget(id="all", tenant="acme", limit_pico=10**15),
        Budget(id="chat", tenant="acme", feature="chat", limit_pico=10**15),
    )
    return ControlSnapshot(
        tenants={"acme": Tenant(id="acme")},
        api_keys={key.key_sha256: key},
        rate_cards={"default": (card,)},
        budgets={"acme": budgets},
    )


async def measure() -> None:
    """Print microseconds a request, the best of the rounds."""
    snapshot, sent = declared(), list[LeaseRequest | LeaseClose]()
    settings = GatewaySettings.model_validate({"salt_secret": "0123456789abcdef"})
    desk = LeaseDesk("g", "b", sent.append, 2.0)
    admission = Admission(
        settings,
        lambda: snapshot,
        {},
        PromptCounter(Upstream(settings), TokenizerFiles(None)),
        desk,
        WaitingRoom(10, 10),
        OutputBounds(1_024, 64, 4_096),
    )
    caller, tags, body = authenticate(b"Bearer sk-1", snapshot), read_tags(HEADERS), read_body(BODY, Operation.CHAT)
    # A completion of token ids needs no tokenizer: it brings the first lease.
    ids = read_body(json.dumps({"model": "m", "prompt": [1, 2, 3], "max_tokens": 16}).encode(), Operation.COMPLETION)
    first = asyncio.create_task(admission.admit(caller, tags, ids, Operation.COMPLETION))
    while not sent:
        await asyncio.sleep(0)
    desk.on_grant(granted(sent[0]))
    for reservation in (await first).reservations:
        desk.settle(reservation, 5)

    async def admit() -> None:
        admitted = await admission.admit(caller, tags, body, Operation.CHAT)
        assert admitted.reservations
        for reservation in admitted.reservations:
            desk.settle(reservation, 50)

    async def read() -> None:
        authenticate(b"Bearer sk-1", snapshot)
        read_tags(HEADERS)
        read_body(BODY, Operation.CHAT)

    print(f"admit and settle   {await best_us(admit):5.1f} us of CPU a request")
    print(f"caller, tags, body {await best_us(read):5.1f} us of CPU a request")


def granted(asked: LeaseRequest | LeaseClose) -> LeaseGrant:
    """A grant of far more than is asked."""
    assert isinstance(asked, LeaseRequest)
    now = datetime.now(UTC)
    return LeaseGrant(
        lease_id=asked.lease_id,
        gateway=asked.gateway,
        tenant=asked.tenant,
        amounts_pico=dict.fromkeys(asked.amounts_pico, 10**14),
        granted_at=now,
        expires_at=now + timedelta(hours=1),
        held_until=now + timedelta(hours=2),
    )


async def best_us(step: Callable[[], Awaitable[None]]) -> float:
    """The least of the rounds, in microseconds of this thread's processor time a step."""
    rounds = []
    for _ in range(ROUNDS):
        began = time.thread_time()
        for _ in range(REQUESTS):
            await step()
        rounds.append((time.thread_time() - began) / REQUESTS * 1e6)
    return min(rounds)


if __name__ == "__main__":
    asyncio.run(measure())
