"""Errors as OpenAI's clients read them."""

from typing import Any

from starlette.responses import JSONResponse

from edgeblt.printable import printable

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


class RefusedError(Exception):
    """A request that gets an error in place of an answer.

    status: the HTTP status.
    message: one sentence with the remedy.
    param: the field that is wrong, where one is.
    code: a word for programs, where one fits.
    retry_after: seconds after which trying again may help; None where it does not.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, printable(message), param, code
        self.retry_after = retry_after

    @property
    def document(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        """The whole answer."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.document, self.status, headers)


def ending() -> RefusedError:
    """The refusal of a server that ends."""
    return RefusedError(503, "the server is ending; try again later", code="draining", retry_after=5)


ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
