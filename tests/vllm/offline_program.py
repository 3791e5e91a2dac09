"""A program of one's own around the engine, metered with explicit tenants: `python offline_program.py MODEL STATE_DIR`.

Prints, as JSON, what the engine told it that each request used.
"""

import json
import sys

from vllm import LLM, SamplingParams

from taximeter_inference.vllm import WorkerMeter, WorkerSettings


def main(model: str, state_dir: str) -> None:
    """Two tenants, one of them with two prompts at once."""
    llm = LLM(
        model,
        served_model_name="tiny",
        dtype="float32",
        enforce_eager=True,
        block_size=32,
        max_model_len=512,
        disable_log_stats=False,
    )
    settings = WorkerSettings(worker_tags="trusted", worker_id="offline", state_dir=state_dir)
    used = {}
    with WorkerMeter(llm, settings) as meter:
        for tenant, prompts in (("acme", ["How much was it? " * 8]), ("globex", ["How far was it? " * 8, "And now?"])):
            with meter.request(tenant, "report"):
                outputs = llm.generate(prompts, SamplingParams(max_tokens=4, ignore_eos=True))
            used[tenant] = (
                sum(len(output.prompt_token_ids) for output in outputs),
                sum(len(answer.token_ids) for output in outputs for answer in output.outputs),
            )
    print("USED " + json.dumps(used))


if __name__ == "__main__":
    main(*sys.argv[1:])
