"""The server: opens the bundles, listens, and ends in good order."""

import asyncio
import logging
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import uvicorn

from edgeblt.errors import EdgebltError, shown
from edgeblt.model import Model, open_model
from edgeblt.serving.app import serving_app
from edgeblt.serving.connections import LARGEST_HEAD, guarded
from edgeblt.serving.options import ServerOptions, ServingLimits
from edgeblt.serving.records import LOG
from edgeblt.serving.served import ServedModels
from edgeblt.serving.state import ServingState

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AFTER_GRACE_S = 2  # seconds to send the last answers, and for connections that still do not end


class ServingServer(uvicorn.Server):
    """Serves until SIGINT or SIGTERM: then texts under way have their time of grace, and all else is refused."""

    def __init__(self, state: ServingState) -> None:
        self._state, self._loop = state, asyncio.get_running_loop()
        options, limits = state.options, state.limits
        super().__init__(
            uvicorn.Config(
                serving_app(state),
                loop="asyncio",
                http=guarded(limits),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=min(limits.connections, 2048),
                h11_max_incomplete_event_size=LARGEST_HEAD,
                timeout_graceful_shutdown=int(options.grace_s) + _AFTER_GRACE_S,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        host, port = (sockets or [])[0].getsockname()[:2]
        there = f"[{host}]" if ":" in host else host
        LOG.info("serving %s at http://%s:%d", ", ".join(each.name for each in self._state.models), there, port)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; the second signal ends at once."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True
        self._loop.call_soon_threadsafe(self._state.drain)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals; unlike uvicorn's, an end in good order is no failure."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def serve(
    bundles: Sequence[Path],
    options: ServerOptions,
    limits: ServingLimits,
    *,
    names: Sequence[str] = (),
    provider: str | None = None,
    threads: int | None = None,
    threshold: float | None = None,
    verify: bool = False,
    prefix_cache_bytes: int = 0,
) -> None:
    """Serve bundles until a signal ends it.

    names: the names that clients use, one for each bundle; those of the directories without.
    provider, threads, threshold, verify, prefix_cache_bytes: as `edgeblt.load` takes them, for each bundle.

    Raises EdgebltError for bundles that cannot be opened, and for an address that cannot be listened on.
    """
    named = _named(bundles, names)
    with _listening(options) as listener:
        opened: list[tuple[str, Model]] = []
        try:
            for name, path in named:
                opened.append((name, open_model(path, provider, threads, verify, threshold, prefix_cache_bytes)))
            models = ServedModels(opened, limits)
            try:
                asyncio.run(_served(models, options, limits, listener))
            finally:
                models.close()
        finally:
            for _, model in opened:
                model.close()


async def _served(models: ServedModels, options: ServerOptions, limits: ServingLimits, listener: socket.socket) -> None:
    with _logging():
        await ServingServer(ServingState(models, options, limits)).serve([listener])
        LOG.info("ended")


def _named(bundles: Sequence[Path], names: Sequence[str]) -> list[tuple[str, Path]]:
    if names and len(names) != len(bundles):
        raise EdgebltError(f"there are {len(names)} names for {len(bundles)} bundles; give one for each")
    named = list(zip(names or [path.resolve().name for path in bundles], bundles, strict=True))
    for name, _ in named:
        if [other for other, _ in named].count(name) > 1:
            raise EdgebltError(f"two bundles are called {shown(name)}; give each a name with --alias")
    return named


@contextmanager
def _listening(options: ServerOptions) -> Iterator[socket.socket]:
    """A socket at the address, before bundles are opened, which takes long. Raises EdgebltError."""
    try:
        family, *_, address = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise EdgebltError(
            f"the address {shown(options.host)} cannot be used ({error.strerror}); give another"
        ) from None
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            place = f"{options.host}:{options.port}"
            raise EdgebltError(
                f"the server cannot listen at {place} ({error.strerror}); end what does, or give another --port"
            ) from None
        yield listener


@contextmanager
def _logging() -> Iterator[None]:
    """A line on stderr for each request, and uvicorn's warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    loggers = {LOG: logging.INFO, logging.getLogger("uvicorn"): logging.ERROR}
    for logger, level in loggers.items():
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
            logger.propagate = True
