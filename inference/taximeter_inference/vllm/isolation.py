"""What a request may not choose for itself, set in the worker as well: a client that goes around the gateway gains nothing.

The cache salt is an HMAC of the pool; a client's own salt only splits its pool further. Priority, transfer parameters and the
like are dropped unless the tenant was granted them, and an adapter serves only the tenants that it belongs to.
"""

from collections.abc import Callable, Mapping

from taximeter_inference.forwarding import Forwarded
from taximeter_inference.gateway.salt import PoolKeys
from taximeter_inference.vllm.engine_types import EngineRequest
from taximeter_inference.vllm.errors import ForeignAdapterError, UntaggedError
from taximeter_inference.vllm.exchange import Exchange
from taximeter_inference.vllm.tags import untagged

TRANSFER_FIELDS = ("kv_transfer_params", "ec_transfer_params")
REPORT_FIELD, REPORT_FULL = "kv_cache_report_mode", "full"
Names = tuple[str, ...]


class Guard:
    """Looks at every sequence on its way into the engine.

    `keys` None leaves salts alone (for measurements). `expect` is told each sequence (its id, tenant and pool), and
    makes vLLM's KV events name it. `refuse` turns one of our errors into one that the server answers with a client's error.
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
    ) -> None:
        self._keys = keys
        self._meter_untagged = meter_untagged
        self._adapters = adapters
        self._privileges = privileges
        self._expect = expect
        self._refuse = refuse

    def prepare(self, request: EngineRequest, exchange: Exchange) -> None:
        """Check and change a request. Raises what `refuse` makes of UntaggedError or ForeignAdapterError."""
        tags = exchange.tags
        try:
            if tags is None:
                tags = exchange.tags = self._without_tags(exchange)
            self._check_adapter(request, tags)
        except (UntaggedError, ForeignAdapterError) as error:
            raise self._refuse(str(error)) from None
        if self._keys is not None:
            request.cache_salt = self._keys.salt(tags.pool, request.cache_salt)
        self._drop_privileges(request, self._privileges.get(tags.tenant, ()))
        if self._expect is not None:
            request.session_id = request.request_id
            self._expect(request.request_id, tags.tenant, tags.pool)

    def _without_tags(self, exchange: Exchange) -> Forwarded:
        if not self._meter_untagged:
            raise UntaggedError("this request has no tags: this worker serves only what it can meter for a tenant")
        return untagged(exchange.path)

    def _check_adapter(self, request: EngineRequest, tags: Forwarded) -> None:
        if request.lora_request is None or not self._adapters:
            return
        name = request.lora_request.lora_name
        if tags.tenant not in self._adapters.get(name, (tags.tenant,)):
            raise ForeignAdapterError(f"the model {name!r} does not exist for this tenant")

    def _drop_privileges(self, request: EngineRequest, granted: Names) -> None:
        if request.priority and "priority" not in granted:
            request.priority = 0
        if getattr(request, "kv_hints", None) is not None and "kv_hints" not in granted:
            request.kv_hints = None  # type: ignore[attr-defined]
        params = request.sampling_params
        extra = params.extra_args if params is not None else None
        if extra:
            dropped = {name for name in TRANSFER_FIELDS if name not in granted} | {REPORT_FIELD}
            extra = {name: value for name, value in extra.items() if name not in dropped}
        if params is not None and self._expect is not None:
            extra = {**(extra or {}), REPORT_FIELD: REPORT_FULL}
        if params is not None and extra is not params.extra_args:
            params.extra_args = extra
