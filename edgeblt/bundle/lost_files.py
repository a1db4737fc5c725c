"""An error message for SIGBUS, which the system sends when a mapped file was truncated; the process ends otherwise."""

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

_SENTENCE = (
    b"edgeblt: a file of weights was cut short while it was in use; copy the bundle or checkpoint again, and replace "
    b"its files instead of writing into them\n"
)
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)


@contextmanager
def explaining_lost_files() -> Iterator[None]:
    """Ends the process with an error message and exit code 2 when a read mapped page is no longer in its file.

    Python's own handlers run too late for this signal, as the read is tried again first. This one is called at once, by
    whichever thread reads; ONNX Runtime holds no lock of Python's while it computes.
    """
    if not hasattr(signal, "SIGBUS"):
        yield
        return
    library = ctypes.CDLL(None)
    library.signal.restype, library.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    handler = _HANDLER(_say)
    before = library.signal(signal.SIGBUS, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        library.signal(signal.SIGBUS, before)


def _say(_: int) -> None:
    os.write(2, _SENTENCE)
    os._exit(2)
