"""Declarations for a replay: as many tenants as asked for, in a few cache pools, on one rate card."""

REPLAY_MODEL = "llama-3.1-8b"


def replay_tenants(count: int) -> list[str]:
    """The ids of a replay's tenants, the largest first."""
    return [f"replay-{number:02d}" for number in range(1, count + 1)]


def replay_declarations(tenants: list[str], pools: int) -> dict[str, object]:
    """What `taximeter apply` is given for a replay: tenants dealt round-robin over the pools, prices from two times before."""
    return {
        "rate_cards": [
            {
                "id": "replay",
                "version": 1,
                "currency": "USD",
                "effective_from": "2020-01-01T00:00:00Z",
                "prices": [
                    {
                        "model": REPLAY_MODEL,
                        "uncached_input": "0.50",
                        "cache_read_gpu": "0.05",
                        "output": "1.50",
                    }
                ],
            }
        ],
        "cache_pools": [{"id": f"replay-pool-{pool + 1}", "tenants": tenants[pool::pools]} for pool in range(pools)],
        "tenants": [{"id": tenant, "name": tenant, "rate_card": "replay"} for tenant in tenants],
    }
