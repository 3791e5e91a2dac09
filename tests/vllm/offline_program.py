"""Programs of one's own around the engine, metered with explicit tenants: `python offline_program.py MODEL STATE_DIR`.

First vLLM's `LLM`, then `AsyncLLM`. Prints, as JSON, what the programs were told that each tenant used of either, and what the
engine's own counters say.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncGenerator, Iterable
from typing import Any

from vllm import LLM, RequestOutput, SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.reader import Counter, get_metrics_snapshot

from taximeter_inference.vllm import WorkerMeter, WorkerSettings

ENGINE: dict[str, Any] = {
    "served_model_name": "tiny",
    "dtype": "float32",
    "enforce_eager": True,
    "block_size": 32,
    "max_model_len": 1024,
    "disable_log_stats": False,
}
COUNTERS = ("vllm:prompt_tokens", "vllm:prompt_tokens_cached", "vllm:generation_tokens")
Used = tuple[int, int]
"""Prompt tokens and output tokens."""


def main(model: str, state_dir: str) -> None:
    """Both, one after the other, in one process: importing vLLM takes most of the time."""
    said = {"batch": batch(model, state_dir), "service": asyncio.run(service(model, state_dir))}
    print("SAID " + json.dumps(said))


def batch(model: str, state_dir: str) -> dict[str, Any]:
    """Two tenants, one of them with two prompts at once."""
    llm = LLM(model, **ENGINE)
    settings = WorkerSettings(worker_tags="trusted", worker_id="batch", state_dir=state_dir)
    used: dict[str, Used] = {}
    with WorkerMeter(llm, settings) as meter:
        for tenant, prompts in (("acme", ["How much was it? " * 8]), ("globex", ["How far was it? " * 8, "And now?"])):
            with meter.request(tenant, "report"):
                outputs = llm.generate(prompts, SamplingParams(max_tokens=4, ignore_eos=True))
            used[tenant] = added(map(used_by, outputs))
    counted = counters()
    llm.llm_engine.engine_core.shutdown()
    return {"used": used, "counted": counted}


async def service(model: str, state_dir: str) -> dict[str, Any]:
    """Four tenants at once: one with two prompts side by side, one that is called off, one that loses interest."""
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model, **ENGINE))
    settings = WorkerSettings(worker_tags="trusted", worker_id="service", state_dir=state_dir)
    used: dict[str, Used] = {}
    started = asyncio.Event()

    def answers(name: str, tokens: int) -> AsyncGenerator[RequestOutput, None]:
        pieces: AsyncGenerator[RequestOutput, None] = engine.generate(
            f"{name} asks. " * 8, SamplingParams(max_tokens=tokens, ignore_eos=True), name
        )
        return pieces

    async def last(name: str, tokens: int) -> Used:
        async for answer in answers(name, tokens):
            found = used_by(answer)
        return found

    async def whole(tenant: str) -> None:
        with meter.request(tenant, "chat"):
            used[tenant] = await last(tenant, 30)

    async def side_by_side(tenant: str) -> None:
        with meter.request(tenant, "chat"):
            used[tenant] = added(await asyncio.gather(last(f"{tenant}-1", 20), last(f"{tenant}-2", 40)))

    async def called_off(tenant: str) -> None:
        with meter.request(tenant, "chat"):
            async for answer in answers(tenant, 900):
                used[tenant] = used_by(answer)
                started.set()

    async def loses_interest(tenant: str) -> None:
        with meter.request(tenant, "chat"):
            async with contextlib.aclosing(answers(tenant, 900)) as pieces:
                async for answer in pieces:
                    used[tenant] = used_by(answer)
                    if used[tenant][1] >= 10:
                        return

    with WorkerMeter(engine, settings) as meter:
        tasks = [asyncio.create_task(run) for run in (whole("acme"), side_by_side("globex"), loses_interest("hooli"))]
        victim = asyncio.create_task(called_off("initech"))
        await started.wait()
        victim.cancel()
        await asyncio.gather(*tasks)
        with contextlib.suppress(asyncio.CancelledError):
            await victim
    counted = counters()
    engine.shutdown()
    return {"used": used, "counted": counted}


def used_by(output: RequestOutput) -> Used:
    """What an output says that it used so far."""
    return len(output.prompt_token_ids or ()), sum(len(answer.token_ids) for answer in output.outputs)


def added(uses: Iterable[Used]) -> Used:
    """Their sum."""
    prompts, outputs = zip(*uses, strict=True)
    return sum(prompts), sum(outputs)


def counters() -> list[int]:
    """The running engine's own totals of prompt, cached and output tokens."""
    totals = dict.fromkeys(COUNTERS, 0)
    for metric in get_metrics_snapshot():
        if isinstance(metric, Counter) and metric.name in totals:
            totals[metric.name] += metric.value
    return list(totals.values())


if __name__ == "__main__":
    main(*sys.argv[1:])
