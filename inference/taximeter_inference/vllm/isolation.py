"""What a request may not choose for itself, set in the worker as well: a client that goes around the gateway gains nothing.

The cache salt is an HMAC of the pool; a client's own salt only splits its pool further. Priority, transfer parameters and the
like are dropped unless the tenant was granted them, and an adapter serves only the tenants that it belongs to.
"""

from collections.abc import Callable, Collection, Mapping

from taximeter_inference.forwarding import Forwarded
from taximeter_inference.gateway.salt import PoolKeys
from taximeter_inference.vllm.engine_types import EngineRequest
from taximeter_inference.vllm.errors import UntaggedError
from taximeter_inference.vllm.exchange import Exchange
from taximeter_inference.vllm.tags import untagged

TRANSFER_FIELDS = ("kv_transfer_params", "ec_transfer_params")
REPORT_FIELD, REPORT_FULL = "kv_cache_report_mode", "full"
Names = tuple[str, ...]


class Guard:
    """Looks at every sequence on its way into the engine.

    `keys` None leaves salts alone (for measurements). `expect` is told each sequence (its id, tenant and pool), and
    makes vLLM's KV events name it. `refuse` makes an error that the server answers with a client's error.
    `waiting` are events that there was no room for: while there are any, no new request is let in, by whatever route.
    """

    def __init__(
        self,
        keys: PoolKeys | None,
        *,
        meter_untagged: bool,
        adapters: Mapping[str, Names],
        privileges: Mapping[str, Names],
        expect: Callable[[str, str, str], None] | None = None,
        refuse: Callable[[str], Exception] = UntaggedError,
        waiting: Collection[object] = (),
    ) -> None:
        self._keys = keys
        self._meter_untagged = meter_untagged
        self._adapters = adapters
        self._privileges = privileges
        self._expect = expect
        self._refuse = refuse
        self._waiting = waiting

    def prepare(self, request: EngineRequest, exchange: Exchange) -> None:
        """Check and change a request. Raises what `refuse` makes."""
        tags = exchange.tags
        if tags is None or self._waiting or (request.lora_request is not None and self._adapters):
            tags = exchange.tags = self._admitted(request, exchange)
        if self._keys is not None:
            given = request.cache_salt
            request.cache_salt = self._keys.pool_salt(tags.pool) if given is None else self._keys.salt(tags.pool, given)
        params = request.sampling_params
        # What nobody asked for need not be dropped: on the event loop, each call that is not made counts.
        if (
            request.priority
            or (params is not None and params.extra_args)
            or getattr(request, "kv_hints", None) is not None
        ):
            self._drop_privileges(request, self._privileges.get(tags.tenant, ()))
        if self._expect is not None:
            if params is not None:
                params.extra_args = {**(params.extra_args or {}), REPORT_FIELD: REPORT_FULL}
            request.session_id = request.request_id
            self._expect(request.request_id, tags.tenant, tags.pool)

    def _admitted(self, request: EngineRequest, exchange: Exchange) -> Forwarded:
        """The tags of a request that may pass."""
        tags = exchange.tags
        # A request that is in the engine already is not broken off.
        if self._waiting and exchange.number is None and not (tags is not None and tags.is_metered):
            raise self._refuse("this worker cannot meter requests now: there is no room for usage events")
        if tags is None:
            if not self._meter_untagged:
                raise self._refuse("this request has no tags: this worker serves only what it can meter for a tenant")
            tags = untagged(exchange.path)
        if request.lora_request is not None:
            name = request.lora_request.lora_name
            if tags.tenant not in self._adapters.get(name, (tags.tenant,)):
                raise self._refuse(f"the model {name!r} does not exist for this tenant")
        return tags

    def _drop_privileges(self, request: EngineRequest, granted: Names) -> None:
        if request.priority and "priority" not in granted:
            request.priority = 0
        if getattr(request, "kv_hints", None) is not None and "kv_hints" not in granted:
            request.kv_hints = None  # type: ignore[attr-defined]
        params = request.sampling_params
        if params is not None and params.extra_args:
            dropped = {name for name in TRANSFER_FIELDS if name not in granted} | {REPORT_FIELD}
            params.extra_args = {name: value for name, value in params.extra_args.items() if name not in dropped}
