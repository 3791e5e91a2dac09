"""Reads rate cards: prices a million tokens become whole pico-units a token, multipliers become prices of their own.

What is finer than 1e-12 is refused; a card that says `quantize: true` has it rounded half up instead.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal, localcontext
from typing import Any

from taximeter_billing.declarations.amounts import amount, listed
from taximeter_billing.errors import DeclarationError
from taximeter_schemas.errors import AmountError
from taximeter_schemas.events import ServiceTier
from taximeter_schemas.money import TOKENS_PER_PRICE_UNIT, price_per_token_pico, to_pico
from taximeter_schemas.rate_cards import RateCard

Convert = Callable[[str | int | Decimal], int]

# When a version is first recorded, the moment of recording takes this one's place.
UNRECORDED = datetime(1970, 1, 1, tzinfo=UTC)
_TAGS = {"model", "adapter", "feature", "operation", "service_tier", "region"}
_WHOLE_PRICES = {"request", "search_unit", "adapter_hour"}
_PRICED_BESIDE = {*_WHOLE_PRICES, "gpu_second"}


def read_rate_card(entry: Mapping[str, Any]) -> RateCard:
    """A card as an operator wrote it. Raises DeclarationError, pydantic's ValidationError."""
    content = dict(entry)
    quantize = content.pop("quantize", False)
    if not isinstance(quantize, bool):
        raise DeclarationError("quantize: true or false is needed")
    multipliers = content.pop("multipliers", {})
    prices: list[dict[str, Any]] = []
    for index, price in enumerate(listed(content, "prices")):
        try:
            prices += _prices(price, multipliers, quantize)
        except DeclarationError as error:
            raise DeclarationError(f"prices[{index}].{error}") from None
    return RateCard.model_validate({**content, "recorded_at": UNRECORDED, "prices": prices})


def per_token(value: str | int | Decimal, *, quantize: bool, multiplier: Decimal = Decimal(1)) -> int:
    """A price a million tokens, times the multiplier, as pico-units a token. Raises AmountError."""
    return _exact(value, multiplier, price_per_token_pico, Decimal(TOKENS_PER_PRICE_UNIT), quantize)


def _prices(entry: object, of_card: object, quantize: bool) -> list[dict[str, Any]]:
    """The price, and beside it one for each service tier that a multiplier names."""
    if not isinstance(entry, dict):
        raise DeclarationError("model: a mapping is needed")
    own = entry.get("multipliers", of_card)
    plain = {name: value for name, value in entry.items() if name != "multipliers"}
    found = [_price(plain, Decimal(1), quantize)]
    if "service_tier" in plain:
        return found
    if not isinstance(own, Mapping):
        raise DeclarationError("multipliers: a mapping of service tiers to factors is needed")
    for tier in own:
        if tier not in set(ServiceTier):
            raise DeclarationError(f"multipliers.{tier}: there are: {', '.join(ServiceTier)}")
        try:
            factor = Decimal(amount(own, tier, to_pico)).scaleb(-12)
        except DeclarationError as error:
            raise DeclarationError(f"multipliers.{error}") from None
        if factor < 0:
            raise DeclarationError(f"multipliers.{tier}: a factor is not below 0")
        found.append({**_price(plain, factor, quantize), "service_tier": tier})
    return found


def _price(entry: dict[str, Any], factor: Decimal, quantize: bool) -> dict[str, Any]:
    converted = {name: value for name, value in entry.items() if name in _TAGS}
    for name, value in entry.items():
        if name == "gpu_second":
            converted["gpu_microsecond"] = amount(entry, name, _converter(name, factor, quantize))
        elif name == "bands":
            converted[name] = [_band(index, band, factor, quantize) for index, band in enumerate(value or [])]
        elif name not in _TAGS:
            converted[name] = amount(entry, name, _converter(name, factor, quantize))
    for prices in (converted, *({**converted, **band} for band in converted.get("bands", ()))):
        _refuse_dear_reads(prices)
    return converted


def _band(index: int, entry: object, factor: Decimal, quantize: bool) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise DeclarationError(f"bands[{index}]: a mapping is needed")
    try:
        return {
            name: value if name == "input_over" else amount(entry, name, _converter(name, factor, quantize))
            for name, value in entry.items()
        }
    except DeclarationError as error:
        raise DeclarationError(f"bands[{index}].{error}") from None


def _refuse_dear_reads(prices: Mapping[str, Any]) -> None:
    """A read that costs more than none makes savings negative, and no policy can share those."""
    full = prices.get("uncached_input")
    for name, price in prices.items():
        if name.startswith("cache_read_") and full is not None and price > full:
            raise DeclarationError(f"{name}: a cache read is dearer than uncached input")


def _converter(name: str, factor: Decimal, quantize: bool) -> Convert:
    def convert(value: str | int | Decimal) -> int:
        if name in _WHOLE_PRICES:
            return _exact(value, factor, to_pico, Decimal(1), quantize)
        return _exact(value, factor, _per_microsecond if name == "gpu_second" else price_per_token_pico,
                      Decimal(1_000_000), quantize)  # fmt: skip

    return convert


def _per_microsecond(value: str | int | Decimal) -> int:
    """A price for a GPU-second as pico-units a microsecond."""
    pico, rest = divmod(to_pico(value), 1_000_000)
    if rest:
        raise AmountError(f"{value!r} a GPU-second is finer than 1e-12 a microsecond")
    return pico


def _exact(value: str | int | Decimal, factor: Decimal, convert: Convert, per: Decimal, quantize: bool) -> int:
    """The value times the factor in pico-units of one unit of `per`; half up where asked to. Raises AmountError."""
    if factor == 1 and not quantize:
        return convert(value)
    if quantize:
        if isinstance(value, float | bool):
            raise AmountError(f"a {type(value).__name__} is not an exact amount: {value!r}; write it as a string")
        try:
            with localcontext(prec=80):
                pico = Decimal(value) * factor / per * 10**12
                return int(pico.to_integral_value(ROUND_HALF_UP))
        except ArithmeticError:
            raise AmountError(f"not an amount: {value!r}") from None
    whole = convert(value)
    scaled = Decimal(whole) * factor
    if scaled != scaled.to_integral_value():
        raise AmountError(f"{value!r} times {factor:f} is finer than 1e-12; say `quantize: true` to round it half up")
    return int(scaled)
