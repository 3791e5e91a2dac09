"""Replays a recorded trace through the gateway of a stack: tenants drawn by seed, time compressed."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from taximeter.workload.client import Outcome, gateway_client
from taximeter.workload.declarations import REPLAY_MODEL
from taximeter.workload.requests import PlannedRequest, draw_tenants
from taximeter.workload.traces import TraceRequest

FEATURES = ("chat", "agent", "search")


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """How to replay: tenants (largest first), seed, speed against the recording (0: as fast as it goes), how many at once."""

    tenants: Sequence[str]
    seed: int
    speed: float
    at_once: int


def planned(trace: Sequence[TraceRequest], plan: ReplayPlan) -> Iterator[PlannedRequest]:
    """The trace's requests, each for the tenant that the seed draws."""
    for index, (recorded, tenant) in enumerate(
        zip(trace, draw_tenants(plan.tenants, len(trace), plan.seed), strict=True)
    ):
        feature = FEATURES[index % len(FEATURES)]
        yield PlannedRequest(tenant, feature, REPLAY_MODEL, recorded.prompt, recorded.output_tokens)


def replay(
    trace: Sequence[TraceRequest],
    plan: ReplayPlan,
    gateway: str,
    keys: dict[str, str],
    done: Callable[[int, Outcome], None],
) -> Outcome:
    """Send the trace and return what came back. `done` hears how many were answered, now and then."""
    return asyncio.run(_replay(trace, plan, gateway, keys, done))


async def _replay(
    trace: Sequence[TraceRequest],
    plan: ReplayPlan,
    gateway: str,
    keys: dict[str, str],
    done: Callable[[int, Outcome], None],
) -> Outcome:
    requests = zip(trace, planned(trace, plan), strict=True)
    began = time.monotonic()
    answered = 0
    async with gateway_client(gateway, keys) as client:

        async def worker() -> None:
            nonlocal answered
            for recorded, request in requests:
                if plan.speed:
                    await asyncio.sleep(max(0.0, recorded.at_ms / 1000 / plan.speed - (time.monotonic() - began)))
                await client.send(request)
                answered += 1
                done(answered, client.outcome)

        async with asyncio.TaskGroup() as group:
            for _ in range(plan.at_once):
                group.create_task(worker())
        return client.outcome
