"""What the double refuses, in Stripe's own shape."""


class RefusedError(Exception):
    """A request that Stripe would refuse. `kept` says whether work had begun, so that Stripe keeps the answer under its key."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        parameter: str | None = None,
        kept: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kept = kept
        extra = {"code": code, "param": parameter}
        self.body = {
            "error": {"type": kind, "message": message, **{key: value for key, value in extra.items() if value}}
        }


def missing(kind: str, object_id: str) -> RefusedError:
    """There is no such object."""
    return RefusedError(404, f"No such {kind}: '{object_id}'", code="resource_missing", parameter="id")
