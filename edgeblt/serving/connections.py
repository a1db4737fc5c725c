"""Connections: uvicorn's, which let no client take its time."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

from edgeblt.serving.options import ServingLimits

LARGEST_HEAD = 16_384  # bytes of a request's line and headers


class GuardedProtocol(H11Protocol):
    """A connection that is closed where the head of a request comes too slowly, or its answer is read too slowly.

    The first begins with the connection, or with a later request's first byte; the second with a complete head.
    """

    limits = ServingLimits()
    _timer: asyncio.TimerHandle | None = None
    _flushing: asyncio.TimerHandle | None = None
    _unread = 0  # bytes of answers that the client had not read at the last look

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            transport.abort()
        else:
            self._allow(self.limits.slow_s)

    def data_received(self, data: bytes) -> None:
        if self._timer is None:
            self._allow(self.limits.slow_s)
        super().data_received(data)

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:  # a request's head is complete
            self._allow(self.limits.request_s + 2 * self.limits.slow_s)

    def on_response_complete(self) -> None:
        self._stop_timer()
        self._unread = self.transport.get_write_buffer_size()
        if self._unread and self._flushing is None:
            self._flushing = self.loop.call_later(self.limits.slow_s, self._check_flushing)
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        if self._flushing:
            self._flushing.cancel()
        super().connection_lost(exc)

    def _check_flushing(self) -> None:
        """Close the connection where the client has read nothing of an answer since the last time."""
        before, self._unread = self._unread, self.transport.get_write_buffer_size()
        if self._unread >= before:
            self.transport.abort()
        elif self._unread:
            self._flushing = self.loop.call_later(self.limits.slow_s, self._check_flushing)
        else:
            self._flushing = None

    def _allow(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None


def guarded(limits: ServingLimits) -> type[asyncio.Protocol]:
    """The protocol with these limits, as uvicorn takes it."""
    return type("LimitedProtocol", (GuardedProtocol,), {"limits": limits})
