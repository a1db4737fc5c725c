"""Memory that a model takes, seen in a process of its own, where no other model was opened or freed before."""

import multiprocessing
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from edgeblt.runtime.machine.memory import resident_memory

Use = Callable[[], object]
"""Opens a model, uses it once and returns it; can be pickled."""


def memory_growth(use: Use) -> int | None:
    """Bytes by which the resident memory of a new process grows while it opens and uses a model.

    None where the system does not report it, or ends that process. Raises what `use` raises.
    """
    if resident_memory() is None:
        return None
    spawning = multiprocessing.get_context("spawn")  # ONNX Runtime's and torch's threads do not survive a fork
    try:
        with ProcessPoolExecutor(1, spawning, initializer=_ignore_interrupts) as pool:
            return pool.submit(_growth, use).result()
    except BrokenProcessPool:
        return None


def _ignore_interrupts() -> None:
    """Lets Ctrl-C, which reaches all processes, end the first of them alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _growth(use: Use) -> int | None:
    before = resident_memory()
    model = use()
    after = resident_memory()
    del model  # not before
    return after.anonymous + after.mapped - before.anonymous - before.mapped if before and after else None
