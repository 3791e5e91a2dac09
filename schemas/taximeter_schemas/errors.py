"""Errors of the schemas package.

SchemaError
├── AmountError          an amount cannot be expressed exactly in pico-units
├── CurrencyMismatchError  two currencies met in one sum
├── PeriodError          a billing period label or time zone is not valid
├── CachePolicyError     a cache-savings policy is malformed or would break a promise
└── CacheUseError        cache uses or their rates are malformed or contradict each other
"""


class SchemaError(Exception):
    """Something does not follow Taximeter's schemas."""


class AmountError(SchemaError, ValueError):
    """The amount cannot be expressed exactly in pico-units (1e-12)."""


class CurrencyMismatchError(SchemaError, ValueError):
    """Amounts of different currencies cannot be added or compared."""


class PeriodError(SchemaError, ValueError):
    """The billing period or time zone is not valid."""


class CachePolicyError(SchemaError, ValueError):
    """The cache-savings policy is malformed, or would break what it promises."""


class CacheUseError(SchemaError, ValueError):
    """Cache uses or their rates are malformed or contradict each other."""
