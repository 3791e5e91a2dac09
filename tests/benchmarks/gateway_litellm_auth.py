# mypy: ignore-errors
# LiteLLM is not installed where types are checked.
"""The keys of the comparison as LiteLLM's custom auth, its documented way to have keys without a database.

Runs inside LiteLLM's own environment, not in ours. A key `sk-bench-NAME-BUDGET` carries a budget (`max_budget`) of that many
1e-9 USD, none where it is 0, and with `custom_auth_run_common_checks` LiteLLM reserves against it as for a key of its
database. LiteLLM settles a reservation in the callback that writes spend, and registers that callback only where there is a
database; `settle` registers the same object without one, so that its spend is kept in memory. The key `sk-spent-NAME-BUDGET`
is answered with what LiteLLM has booked so far, as the text of a refusal.
"""

from fastapi import HTTPException, Request
from litellm.proxy._types import UserAPIKeyAuth, hash_token
from litellm.proxy.hooks.proxy_track_cost_callback import ProxyDBLogger

settle = ProxyDBLogger()


async def user_api_key_auth(request: Request, api_key: str) -> UserAPIKeyAuth:
    """Who calls, or what was booked."""
    kind, _, name = api_key.removeprefix("sk-").partition("-")
    key = f"sk-bench-{name}"
    if kind == "spent":
        from litellm.proxy.proxy_server import spend_counter_cache

        spent = spend_counter_cache.in_memory_cache.get_cache(f"spend:key:{hash_token(key)}")
        raise HTTPException(418, f"spent={float(spent or 0.0):.12f}")
    if kind != "bench":
        raise HTTPException(401, "unknown key")
    budget = int(name.rpartition("-")[2]) / 1e9
    return UserAPIKeyAuth(api_key=key, token=hash_token(key), key_alias=name, max_budget=budget or None, spend=0.0)
