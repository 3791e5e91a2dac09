"""Errors of the gateway: each has an HTTP status and a code, and is sent in OpenAI's error shape.

GatewayError
├── InvalidApiKeyError        401 invalid_api_key
├── TenantSuspendedError      403 tenant_suspended
├── ServiceTierError          403 service_tier_not_allowed
├── MissingFeatureError       400 missing_feature
├── InvalidTagError           400 invalid_tag
├── InvalidJsonError          400 invalid_json
├── InvalidRequestError       400 invalid_request
├── UnpricedModelError        400 unpriced_model
├── BodyTooLargeError         413 body_too_large
├── UnknownRouteError         404 unknown_route
├── MethodNotAllowedError     405 method_not_allowed
├── BudgetError               there is no budget now: a request in no hurry may wait
│   ├── BudgetExhaustedError      402 budget_exhausted
│   │   └── InFlightBudgetError       402 in_flight_budget_exhausted
│   └── BudgetUnavailableError    503 budget_unavailable
├── LeaseOverError            503 lease_over
├── UpstreamUnreachableError  502 upstream_unreachable
├── UpstreamTimeoutError      504 upstream_timeout
├── UpstreamFailedError       502 upstream_failed
├── UpstreamRefusedError      the model server's own answer, passed on
└── StoppingError             503 stopping
"""

from collections.abc import Mapping
from typing import ClassVar

import msgspec


class GatewayError(Exception):
    """The request is refused."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    kind: ClassVar[str] = "invalid_request_error"
    retry_after_seconds: ClassVar[int | None] = None
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def details(self) -> dict[str, str]:
        """More fields for the error object."""
        return {}

    def body(self) -> bytes:
        """The error in OpenAI's shape."""
        message = str(self) or (self.__doc__ or "")
        shape = {"message": message, "type": self.kind, "param": None, "code": self.code, **self.details()}
        return msgspec.json.encode({"error": shape})


class InvalidApiKeyError(GatewayError):
    """The API key is missing or not valid: send it as "Authorization: Bearer KEY"."""

    status, code, kind = 401, "invalid_api_key", "authentication_error"


class TenantSuspendedError(GatewayError):
    """This tenant is suspended."""

    status, code, kind = 403, "tenant_suspended", "permission_error"


class ServiceTierError(GatewayError):
    """This tenant's plan does not include that service tier."""

    status, code, kind = 403, "service_tier_not_allowed", "permission_error"


class MissingFeatureError(GatewayError):
    """The header x-taximeter-feature is required: the feature of your product that this request serves."""

    status, code = 400, "missing_feature"


class InvalidTagError(GatewayError):
    """A tag in an x-taximeter-... header is not valid."""

    status, code = 400, "invalid_tag"


class InvalidJsonError(GatewayError):
    """The body is not a JSON object."""

    status, code = 400, "invalid_json"


class InvalidRequestError(GatewayError):
    """A field of the request is not valid."""

    status, code = 400, "invalid_request"


class UnpricedModelError(GatewayError):
    """The model has no price on this tenant's rate card."""

    status, code = 400, "unpriced_model"


class BodyTooLargeError(GatewayError):
    """The body is longer than this gateway takes."""

    status, code = 413, "body_too_large"


class UnknownRouteError(GatewayError):
    """There is no such route."""

    status, code = 404, "unknown_route"


class MethodNotAllowedError(GatewayError):
    """The route does not take this method."""

    status, code = 405, "method_not_allowed"


class BudgetError(GatewayError):
    """There is no budget for this request now; one that is in no hurry may wait for it."""

    outcome: Mapping[str, str] = {}
    """What became of a request that was ready to wait: the queue was full, or its time was over."""

    def details(self) -> dict[str, str]:
        """What became of the waiting."""
        return dict(self.outcome)


class BudgetExhaustedError(BudgetError):
    """What is left of a budget does not pay for this request."""

    status, code, kind = 402, "budget_exhausted", "budget_exhausted"

    def __init__(
        self,
        message: str,
        details: dict[str, str],
        headers: tuple[tuple[bytes, bytes], ...] = (),
        fallbacks: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self._details = details
        self.headers = headers
        self.fallbacks = fallbacks or {}

    def details(self) -> dict[str, str]:
        """Which budget, its limit, what is spent, and when it begins anew."""
        return {**self._details, **self.outcome}


class InFlightBudgetError(BudgetExhaustedError):
    """Requests under way hold what is left of a budget; some of it comes back when they end."""

    code = "in_flight_budget_exhausted"
    retry_after_seconds = 1


class BudgetUnavailableError(BudgetError):
    """The keeper of budgets cannot be reached, and this budget says to refuse then."""

    status, code, kind = 503, "budget_unavailable", "service_unavailable"
    retry_after_seconds = 1


class LeaseOverError(GatewayError):
    """The keeper of budgets was out of reach for so long that what this request had reserved is granted to others."""

    status, code, kind = 503, "lease_over", "service_unavailable"
    retry_after_seconds = 1


class UpstreamUnreachableError(GatewayError):
    """The model server cannot be reached."""

    status, code, kind = 502, "upstream_unreachable", "upstream_error"


class UpstreamTimeoutError(GatewayError):
    """The model server did not answer in time."""

    status, code, kind = 504, "upstream_timeout", "upstream_error"


class UpstreamFailedError(GatewayError):
    """The model server failed at the request; another attempt follows."""

    status, code, kind = 502, "upstream_failed", "upstream_error"


class UpstreamRefusedError(GatewayError):
    """The model server refused the request before it was dispatched; its own answer is passed on."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"the model server answered {status}")
        self.upstream_status = status
        self._body = body

    def body(self) -> bytes:
        """The model server's answer."""
        return self._body


class StoppingError(GatewayError):
    """This gateway is stopping."""

    status, code, kind = 503, "stopping", "service_unavailable"
    retry_after_seconds = 1
