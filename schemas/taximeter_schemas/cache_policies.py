"""Cache-savings policies: who gets what prefix caching saved. Versioned data, checked when loaded.

Two layers. A *rule* (WaterfallRule, ShapleyRule) is arithmetic: anything that adds up is a rule, also one that would let
a tenant earn money by warming a cache. A *policy* is a rule with an id and a version that may appear on an invoice; it is
refused when it could break its promise: a warmer share without a cap (a tenant is paid for being first), weights by
tokens across models of different price (cheap tokens draw credits that dear ones earned), `equal` without a named list
(whoever splits into two tenants gets two shares).
"""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from taximeter_schemas.cache_uses import SkuRates, describe
from taximeter_schemas.errors import CachePolicyError

BPS_WHOLE = 10_000
TTL_SECONDS_MAX = 31 * 86_400
"""A settlement looks this far back for blocks that a period begins with."""
BasisPoints = Annotated[int, Field(ge=0, le=BPS_WHOLE, strict=True)]
PoolWeight = Literal["list_spend", "input_tokens", "cached_tokens", "equal"]
SelfHits = Literal["keep", "share"]
TOKEN_WEIGHTS: frozenset[PoolWeight] = frozenset({"input_tokens", "cached_tokens"})


class Frozen(BaseModel):
    """Frozen, no float taken for a whole number, nothing unknown accepted."""

    model_config = ConfigDict(extra="forbid", frozen=True, regex_engine="python-re")


class Defaults(Frozen):
    """What every rule states beside its split.

    `unattributed`: who gets the saving of a use that has neither block hashes nor a pool. `storage`: who bears the cost of
    keeping blocks in cache, their creator alone or everybody who hit them, by hits (the creator where nobody did).
    `ttl_seconds`: how long a block that nobody uses is in cache (None: until it is evicted or filled again). Where keeping blocks
    has a price it must be said: else a block that was filled once would be paid for ever after.
    """

    unattributed: Literal["beneficiary", "provider"] = "beneficiary"
    storage: Literal["creator", "shared"] = "creator"
    ttl_seconds: Annotated[int, Field(ge=1, le=TTL_SECONDS_MAX, strict=True)] | None = None


class WaterfallRule(Defaults):
    """Splits each lot's saving in basis points that sum to 10,000.

    Order: the write premium is recovered for the warmer out of what its block saved (`recover_premium`), a tenant keeps
    what it saved on its own blocks (`self_hits: keep`), the rest is split, the warmer's part is cut to its cap, and the
    pool's part is shared by weight. `warmer_cap_bps` is in basis points of what the warmer paid to write the block: the
    recovered premium and the warmer's share never exceed it together; 10,000 means that nobody is paid more than the
    write cost. What the cap cuts goes back to the tenants that hit.
    """

    kind: Literal["waterfall"] = "waterfall"
    provider_bps: BasisPoints = 0
    beneficiary_bps: BasisPoints = 0
    warmer_bps: BasisPoints = 0
    pool_bps: BasisPoints = 0
    pool_weight: PoolWeight = "list_spend"
    pool_tenants: tuple[str, ...] = ()
    self_hits: SelfHits = "keep"
    recover_premium: bool = False
    warmer_cap_bps: Annotated[int, Field(ge=0, strict=True)] | None = None

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        whole = self.provider_bps + self.beneficiary_bps + self.warmer_bps + self.pool_bps
        if whole != BPS_WHOLE:
            raise ValueError(
                f"provider, beneficiary, warmer and pool must sum to {BPS_WHOLE} basis points, not {whole}"
            )
        _refuse_named_twice(self.pool_tenants)
        return self


class ShapleyRule(Defaults):
    """Each use pays its reads; what filling a block cost above a read is shared by its users: equally (`tenant`) or by the
    number of uses (`use`). Who came first makes no difference."""

    kind: Literal["shapley"] = "shapley"
    players: Literal["tenant", "use"]


Rule = WaterfallRule | ShapleyRule


class Published(Defaults):
    """What every published policy has. A published version never changes."""

    id: Annotated[str, Field(min_length=1)] = "default"
    version: Annotated[int, Field(ge=1, strict=True)] = 1

    @property
    def name(self) -> str:
        """The version's full name: "default@1"."""
        return f"{self.id}@{self.version}"

    @property
    def rule(self) -> Rule:
        """The policy's arithmetic."""
        raise NotImplementedError

    def _stated(self) -> dict[str, object]:
        return {"unattributed": self.unattributed, "storage": self.storage, "ttl_seconds": self.ttl_seconds}


class Retain(Published):
    """The provider keeps all savings; every tenant pays the list price (and its write premium)."""

    kind: Literal["retain"]

    @property
    def rule(self) -> Rule:
        return WaterfallRule.model_validate({**self._stated(), "provider_bps": BPS_WHOLE, "self_hits": "share"})


class Beneficiary(Published):
    """Whoever hits keeps the saving, after the warmer has got its write premium back. The default."""

    kind: Literal["beneficiary"] = "beneficiary"
    recover_premium: bool = True

    @property
    def rule(self) -> Rule:
        split = {"beneficiary_bps": BPS_WHOLE, "recover_premium": self.recover_premium}
        return WaterfallRule.model_validate({**self._stated(), **split})


class Warmer(Published):
    """Whoever filled the block gets what it saves to others, up to a part of what the filling cost it."""

    kind: Literal["warmer"]
    warmer_cap_bps: BasisPoints
    recover_premium: bool = True

    @property
    def rule(self) -> Rule:
        split = {"warmer_bps": BPS_WHOLE, **self.model_dump(include={"warmer_cap_bps", "recover_premium"})}
        return WaterfallRule.model_validate({**self._stated(), **split})


class Pool(Published):
    """All savings of a cache pool are shared by weight."""

    kind: Literal["pool"]
    weight: PoolWeight
    tenants: tuple[str, ...] = ()
    recover_premium: bool = True

    @model_validator(mode="after")
    def _named(self) -> Self:
        _refuse_unnamed_equal(self.weight, self.tenants)
        _refuse_named_twice(self.tenants)
        return self

    @property
    def rule(self) -> Rule:
        split = {"pool_bps": BPS_WHOLE, "pool_weight": self.weight, "pool_tenants": self.tenants, "self_hits": "share"}
        return WaterfallRule.model_validate({**self._stated(), **split, "recover_premium": self.recover_premium})


class Waterfall(Published, WaterfallRule):
    """Any split, in basis points."""

    kind: Literal["waterfall"]

    @model_validator(mode="after")
    def _keeps_its_promise(self) -> Self:
        if self.warmer_bps and self.warmer_cap_bps is None:
            raise ValueError(
                "a warmer share needs a cap (warmer_cap_bps): without one a tenant is paid for being first"
            )
        if (self.warmer_cap_bps or 0) > BPS_WHOLE:
            raise ValueError(f"warmer_cap_bps above {BPS_WHOLE} pays a warmer more than the write cost it")
        if self.pool_bps:
            _refuse_unnamed_equal(self.pool_weight, self.pool_tenants)
        return self

    @property
    def rule(self) -> Rule:
        return WaterfallRule.model_validate(self.model_dump(exclude={"id", "version"}))


class ShapleyTenant(Published):
    """The cost of filling a block is shared equally by the tenants that used it."""

    kind: Literal["shapley_tenant"]

    @property
    def rule(self) -> Rule:
        return ShapleyRule.model_validate({**self._stated(), "players": "tenant"})


class ShapleyUse(Published):
    """The cost of filling a block is shared by its uses. Recommended for amortizing: splitting gains nothing."""

    kind: Literal["shapley_use"]

    @property
    def rule(self) -> Rule:
        return ShapleyRule.model_validate({**self._stated(), "players": "use"})


CachePolicy = Annotated[
    Retain | Beneficiary | Warmer | Pool | Waterfall | ShapleyTenant | ShapleyUse, Field(discriminator="kind")
]
DEFAULT_CACHE_POLICY = Beneficiary()

_POLICY: TypeAdapter[CachePolicy] = TypeAdapter(CachePolicy)
_RULE: TypeAdapter[Rule] = TypeAdapter(Annotated[Rule, Field(discriminator="kind")])


def load_cache_policy(data: object, rates: Mapping[str, SkuRates]) -> CachePolicy:
    """A policy that may be published, from parsed JSON or YAML, against the rates of the models that it will settle.

    Raises CachePolicyError when it is malformed or could break its promise.
    """
    try:
        policy = _POLICY.validate_python(data)
    except ValidationError as error:
        raise CachePolicyError(f"policy: {describe(error)}") from None
    refuse_mixed_prices(policy.rule, rates)
    return policy


def read_rule(data: object, rates: Mapping[str, SkuRates]) -> Rule:
    """Arithmetic only: a rule as it stands ({"kind": "waterfall", ...}, {"kind": "shapley", "players": ...}), without the
    checks of publishing. Other kinds are policies, with all checks. Raises CachePolicyError when it is malformed."""
    if isinstance(data, Mapping) and data.get("kind") not in {"waterfall", "shapley"}:
        return load_cache_policy(data, rates).rule
    try:
        return _RULE.validate_python(data)
    except ValidationError as error:
        raise CachePolicyError(f"policy: {describe(error)}") from None


def refuse_mixed_prices(rule: Rule, rates: Mapping[str, SkuRates]) -> None:
    """Raises CachePolicyError when the rule weighs by tokens and the models differ in price. Checked again when a period
    is settled, since a later rate card may part the prices."""
    if not isinstance(rule, WaterfallRule) or not rule.pool_bps or rule.pool_weight not in TOKEN_WEIGHTS:
        return
    prices = {(rate.p, rate.r) for rate in rates.values()}
    if len(prices) > 1:
        raise CachePolicyError(
            f"weights by {rule.pool_weight} across models of different price: {', '.join(sorted(rates))};"
            " weigh by list_spend"
        )


def _refuse_unnamed_equal(weight: PoolWeight, tenants: tuple[str, ...]) -> None:
    if weight == "equal" and not tenants:
        raise ValueError(
            "equal shares need a named list of tenants: without one, whoever splits in two gets two shares"
        )
    if weight != "equal" and tenants:
        raise ValueError("a list of tenants goes with equal shares only")


def _refuse_named_twice(tenants: tuple[str, ...]) -> None:
    if len(set(tenants)) != len(tenants):
        raise ValueError("the list of tenants names one twice")
