"""Exact money: whole pico-units (1e-12 of a currency's major unit) with the currency beside them.

A pico-unit is fine enough for a price per token (1 USD per million tokens is 1,000,000 pico-USD a token), and whole
numbers add up exactly. Rounding to what a bank can pay happens once, in billing.
"""

from decimal import Context, Decimal, Inexact, InvalidOperation

from taximeter_schemas.errors import AmountError

PICO_PER_UNIT = 10**12
TOKENS_PER_PRICE_UNIT = 1_000_000

# Wider than any sum of money, and an error rather than a rounding where it is not wide enough.
_EXACT = Context(prec=60, traps=[InvalidOperation, Inexact])

# ISO 4217 minor-unit exponents other than 2, for the currencies that Stripe accepts.
_EXPONENTS = {
    "BIF": 0, "CLP": 0, "DJF": 0, "GNF": 0, "JPY": 0, "KMF": 0, "KRW": 0, "MGA": 0, "PYG": 0, "RWF": 0,
    "UGX": 0, "VND": 0, "VUV": 0, "XAF": 0, "XOF": 0, "XPF": 0,
    "BHD": 3, "JOD": 3, "KWD": 3, "OMR": 3, "TND": 3,
}  # fmt: skip


def currency_exponent(currency: str) -> int:
    """Decimal places of the currency's minor unit (ISO 4217): 2 for USD, 0 for JPY, 3 for KWD."""
    return _EXPONENTS.get(currency.upper(), 2)


def pico_per_minor_unit(currency: str) -> int:
    """Pico-units in one minor unit: 10,000,000,000 in a US cent."""
    return int(PICO_PER_UNIT // 10 ** currency_exponent(currency))


def to_pico(amount: str | int | Decimal) -> int:
    """An amount in major units ("12.50") as pico-units. Raises AmountError when it is not a number or is finer than 1e-12."""
    if isinstance(amount, float | bool):
        raise AmountError(f"a {type(amount).__name__} is not an exact amount: {amount!r}; write it as a string")
    try:
        scaled = Decimal(amount).scaleb(12, _EXACT)
    except Inexact:
        raise AmountError(f"finer than 1e-12, or beyond all measure: {amount!r}") from None
    except InvalidOperation:
        raise AmountError(f"not an amount: {amount!r}") from None
    if not scaled.is_finite() or scaled != scaled.to_integral_value():
        raise AmountError(f"finer than 1e-12, or not finite: {amount!r}")
    return int(scaled)


def price_per_token_pico(per_million: str | int | Decimal) -> int:
    """A price per million tokens in major units as pico-units a token. Raises AmountError when it does not divide exactly."""
    pico, rest = divmod(to_pico(per_million), TOKENS_PER_PRICE_UNIT)
    if rest:
        raise AmountError(f"{per_million!r} per million tokens is finer than 1e-12 a token")
    return pico


def from_pico(amount_pico: int) -> Decimal:
    """Pico-units as an exact Decimal in major units."""
    return Decimal(amount_pico).scaleb(-12, _EXACT)


def format_pico(amount_pico: int, currency: str, places: int | None = None) -> str:
    """An amount for people: "12.50 USD". Cut to `places` (half up) where given, else exact with trailing zeros removed."""
    exponent = currency_exponent(currency)
    if places is None:
        exact = f"{from_pico(amount_pico):f}"
        whole, _, fraction = exact.partition(".")
        fraction = fraction.rstrip("0").ljust(exponent, "0")
        return f"{whole}.{fraction} {currency}" if fraction else f"{whole} {currency}"
    step = 10 ** (12 - places)
    rounded = (abs(amount_pico) + step // 2) // step
    sign = "-" if amount_pico < 0 and rounded else ""
    whole_units, rest = divmod(rounded, 10**places)
    digits = f"{sign}{whole_units:,}" + (f".{rest:0{places}d}" if places else "")
    return f"{digits} {currency}"
