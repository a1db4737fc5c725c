"""Guards before every route: the key, the host, a log line and the metrics, and answers to errors."""

import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgeblt.serving.api.refusals import RefusedError
from edgeblt.serving.records import LOG, RequestRecord
from edgeblt.serving.state import ServingState

OPEN_PATHS = ("/", "/health", "/openapi.json")  # need no key: nothing in them is the user's
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class RecordingGuard:
    """Writes a log line and counts each request; whatever fails inside becomes one answer, never a traceback."""

    def __init__(self, app: ASGIApp, state: ServingState) -> None:
        self._app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        client = scope.get("client")
        record = RequestRecord(client[0] if client else "-", scope["method"], scope["path"])
        scope["edgeblt"] = record

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-content-type-options", b"nosniff")]}
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:
            LOG.error("%s failed: %s", scope["path"][:80], " ".join(repr(error).split())[:500], exc_info=error)
            if not record.status:
                await RefusedError(500, "the server failed on this request").response(scope, receive, noted)
        finally:
            route = scope.get("route")
            record.endpoint = getattr(route, "path", "other")
            self._state.metrics.answered(record)
            record.log()


class KeyGuard:
    """Refuses requests without the key, and without one those that other sites' pages may have sent."""

    def __init__(self, app: ASGIApp, state: ServingState) -> None:
        self._app, options = app, state.options
        self._key = None if options.api_key is None else options.api_key.encode()
        self._hosts = (*_LOOPBACK, options.host) if options.is_loopback and not options.no_auth else ()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal:
            return await refusal.response(scope, receive, send)
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> RefusedError | None:
        headers = Headers(scope=scope)
        if self._key is None:
            return self._wrong_host(headers.get("host", ""))
        if scope["path"] in OPEN_PATHS:
            return None
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(errors="replace"), self._key):
            return None
        return RefusedError(
            401, "the API key is missing or wrong; send Authorization: Bearer KEY", code="invalid_api_key"
        )

    def _wrong_host(self, host: str) -> RefusedError | None:
        """A page whose site's name was made to lead here (DNS rebinding) still sends that name."""
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:
            name = None
        if not self._hosts or name in self._hosts:
            return None
        return RefusedError(
            403, "without an API key only requests to this machine by its own name are answered; see --api-key"
        )
