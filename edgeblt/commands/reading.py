"""An estimate of how long a prompt takes to read, and of the memory it will take, shown while it is read.

Most of the time that a byte takes does not depend on its position. That of the global stage's attention does: each
patch attends to all patches before it, so its total grows with the square of their number. The estimate for the whole
prompt is extrapolated from the time that the bytes read so far have taken.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
from rich.filesize import decimal

from edgeblt.progress import BYTES, Advance, progress, progress_is_shown
from edgeblt.runtime.machine.memory import available_memory
from edgeblt.runtime.session import Session

SHOWN_AFTER, JUDGED_AFTER = 0.5, 2.0  # seconds of reading, until a bar is shown and until the estimate is trusted
SAID_FROM = 60.0  # estimated seconds from which a sentence announces them


@dataclass
class _QuadraticFit:
    """Least-squares fit of `seconds = linear * patches + square * patches ** 2`, neither coefficient below 0."""

    # Sums over the points: of patches ** 2, ** 3 and ** 4, and of seconds times patches and patches ** 2.
    count: float = 0.0
    mixed: float = 0.0
    square: float = 0.0
    time_count: float = 0.0
    time_square: float = 0.0

    def add(self, patches: int, seconds: float) -> None:
        self.count += patches**2
        self.mixed += patches**3
        self.square += patches**4
        self.time_count += seconds * patches
        self.time_square += seconds * patches**2

    def seconds(self, patches: float) -> float:
        """Estimated seconds for `patches` patches; 0 before the first point."""
        if not self.count:
            return 0.0
        determinant = self.count * self.square - self.mixed**2
        if determinant > 1e-9 * self.count * self.square:
            linear = (self.time_count * self.square - self.time_square * self.mixed) / determinant
            square = (self.time_square * self.count - self.time_count * self.mixed) / determinant
            if linear >= 0 and square >= 0:
                return linear * patches + square * patches**2
            if linear < 0:
                return self.time_square / self.square * patches**2
        return self.time_count / self.count * patches


class PromptCost:
    """Estimate of the seconds that reading a prompt of `size` bytes takes, better the more of it has been read."""

    def __init__(self, size: int, patches_before: int = 0) -> None:
        """`patches_before`: number of patches in the text that the prompt goes on."""
        self.size, self.bytes_per_patch, self.patches_before = size, 0.0, patches_before
        self._attention, self._expected = _QuadraticFit(), 0.0

    def add(self, read: int, patches: int, seconds: float, global_seconds: float) -> None:
        """Adds a measurement: `read` bytes, `patches` patches, seconds in all and in the global stage alone."""
        self._attention.add(patches, global_seconds)
        self.bytes_per_patch = read / max(patches, 1)
        share = self.size / read
        self._expected = (seconds - global_seconds) * share + self._attention.seconds(patches * share)

    @property
    def seconds(self) -> float:
        return self._expected


@contextmanager
def shown_reading(size: int, session: Session | None = None) -> Iterator[Callable[[Session], None]]:
    """Shows how much of a prompt of `size` bytes is read: yields a function to call with the session after each chunk.

    session: what the prompt is read on, where that has read anything before.

    If reading all of it will take more than a minute, a sentence on stderr says so as soon as that is known.
    """
    start, patches = (session.position, session.patch_count) if session else (0, 0)
    cost, started, done, last = PromptCost(size, patches), time.monotonic(), 0, start
    said = said_memory = not progress_is_shown()
    advance: Advance | None = None
    with ExitStack() as bar:

        def note() -> str:
            seconds = time.monotonic() - started
            return f"{decimal(round(done / seconds))}/s, {max(cost.seconds - seconds, 0):.0f} s left"

        def show(session: Session) -> None:
            nonlocal advance, done, last, said, said_memory
            if session.position <= last:  # several pieces of a chunk come after all of it is read
                return
            last, read, seconds = session.position, session.position - start, time.monotonic() - started
            cost.add(read, session.patch_count - patches, seconds, session.work["global"].seconds)
            if seconds >= SHOWN_AFTER:
                if advance is None:
                    advance = bar.enter_context(progress("reading the prompt", size, BYTES, even=False, note=note))
                more, done = min(read, size) - done, min(read, size)
                advance(more)
            if not said_memory and (sentence := memory_sentence(cost, session)):
                said_memory = True
                print(f"edgeblt: {sentence}", file=sys.stderr, flush=True)
            if not said and seconds >= JUDGED_AFTER and cost.seconds >= SAID_FROM:
                said = True
                print(f"edgeblt: {cost_sentence(cost)}", file=sys.stderr, flush=True)

        yield show


def memory_sentence(cost: PromptCost, session: Session) -> str | None:
    """The sentence that announces more keys and values than there is memory for; None where they will fit."""
    cache = session.state.caches.get("global")
    if cache is None or not isinstance(cache.buffers[0], np.ndarray):  # in a GPU's memory, or portable
        return None
    patches = cost.patches_before + cost.size / cost.bytes_per_patch
    slots = 2 ** math.ceil(math.log2(max(patches, 1)))  # the cache doubles as it fills
    needed, available = slots * cache.nbytes // cache.capacity, available_memory()
    if available is None or needed - cache.nbytes <= available:
        return None
    return (
        f"the keys and values of this prompt's patches will take about {decimal(needed)}, and {decimal(available)} of"
        " memory are free; end other processes, or use a shorter prompt"
    )


def cost_sentence(cost: PromptCost) -> str:
    """The sentence that announces a long reading time."""
    return (
        f"reading this prompt of {cost.size:,} bytes will take about {_duration(cost.seconds)}: it starts a patch every"
        f" {cost.bytes_per_patch:.1f} bytes, and each patch looks back at all before it; Ctrl-C stops at once"
    )


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
