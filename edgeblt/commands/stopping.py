"""Handling of the signals that end a command: Ctrl-C, SIGTERM, and SIGHUP when the terminal is closed."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from edgeblt.bundle.system_calls import set_blocking

_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # Windows has no SIGHUP
_GRACE_S = 0.2  # seconds that Python code has to end by itself
_SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides the cursor

_received: list[int] = []


def was_stopped() -> int | None:
    """The signal that asked the command to end, or None; an exception raised after it is only its consequence."""
    return _received[0] if _received else None


def forget_signals() -> None:
    """Go on after a signal that stopped only part of a command."""
    _received.clear()


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Lets signals end the command by an exception, so that half-written files are removed."""

    def stop(number: int, _: object) -> None:
        _received.append(number)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    _received.clear()
    ours = [number for number in _SIGNALS if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)]
    if threading.current_thread() is not threading.main_thread():
        ours = []
    before = {number: signal.signal(number, stop) for number in ours}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stopped_at_once() -> Iterator[None]:
    """Lets the same signals end the process while native code runs, whose end Python's own handlers would await.

    Only for work that leaves nothing half-written.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(reader, over), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        os.close(writer)
        watcher.join()
        os.close(reader)


def _watch(reader: int, over: threading.Event) -> None:
    """Reads the numbers of signals as they come, until the other end of the pipe is closed."""
    while number := os.read(reader, 1):
        if number[0] in _SIGNALS and not over.wait(_GRACE_S):
            with suppress(OSError):
                if sys.stderr.isatty():
                    os.write(2, _SHOW_CURSOR)
            os._exit(128 + number[0])
