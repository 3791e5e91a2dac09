"""RefusedError: a request that the simulated server does not take, in OpenAI's error shape."""


class RefusedError(Exception):
    """The request is refused with that HTTP status."""

    def __init__(self, status: int, message: str, kind: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind

    def body(self) -> dict[str, object]:
        """The answer, as vLLM shapes it."""
        return {"error": {"message": str(self), "type": self.kind, "param": None, "code": self.status}}


def unknown_model(name: str) -> RefusedError:
    """The refusal of a model that is not served."""
    return RefusedError(404, f"The model `{name}` does not exist.", "NotFoundError")
