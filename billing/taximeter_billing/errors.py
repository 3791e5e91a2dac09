"""Errors of the billing package.

BillingError
├── DeclarationError    a declarations file is not valid; says where
├── NotFoundError       there is no such tenant, key, invoice or period
├── PeriodOpenError     the period has not ended, or its grace has not
├── AlertError          the log did not take an alert
├── LogAwayError        the log does not answer; nothing was recorded
└── FrozenError         something finalized or published would have to change
"""


class BillingError(Exception):
    """Something about billing failed. `status` and `code` are what the API answers."""

    status = 400
    code = "billing_error"


class DeclarationError(BillingError, ValueError):
    """The declarations are not valid."""

    status = 422
    code = "invalid_declaration"


class NotFoundError(BillingError, KeyError):
    """There is no such thing."""

    status = 404
    code = "not_found"

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else "not found"


class PeriodOpenError(BillingError):
    """The period has not ended, or its grace has not."""

    status = 409
    code = "period_open"


class FrozenError(BillingError):
    """What is finalized or published does not change; a correction is something new."""

    status = 409
    code = "frozen"


class AlertError(BillingError):
    """The log did not take an alert."""

    status = 503
    code = "not_sent"


class LogAwayError(BillingError):
    """The log does not answer; nothing was recorded."""

    status = 503
    code = "log_away"
