"""Slots for texts, and the queue of those that wait for one, in the order in which they came."""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from edgeblt.serving.api.refusals import RefusedError, ending
from edgeblt.serving.options import ServingLimits

_SMOOTHING = 0.9  # share of the earlier mean in the mean time of a text
LONGEST_RETRY_S = 60


class Slots:
    """Slots of one model. Used by the event loop only.

    active: texts that have a slot.
    count: number of slots.
    """

    def __init__(self, limits: ServingLimits) -> None:
        self.active = 0
        self.count, self._most = limits.slots, limits.slots + limits.queue
        self._admitted = 0  # texts that have a slot, wait for one, or are about to
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._mean_s, self._is_draining = 1.0, False

    @property
    def queued(self) -> int:
        """Texts that wait for a slot."""
        return self._admitted - self.active

    def admit(self, count: int) -> None:
        """Count texts in, which `leave` counts out. Raises RefusedError where there is no room for all of them."""
        if self._is_draining:
            raise ending()
        if self._admitted + count > self._most:
            wait = self._mean_s * max(self.queued, 1) / self.count
            raise RefusedError(
                429,
                f"{self.active} texts are being generated and {self.queued} wait; try again later",
                code="queue_full",
                retry_after=min(max(math.ceil(wait), 1), LONGEST_RETRY_S),
            )
        self._admitted += count

    def leave(self, count: int) -> None:
        """Count out texts that were admitted."""
        self._admitted -= count

    @asynccontextmanager
    async def taken(self, count: int) -> AsyncIterator[None]:
        """Slots for texts that were admitted, as soon as there are so many. Raises RefusedError when draining."""
        if self._waiting or self.active + count > self.count:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append((count, turn))
            try:
                await turn
            except BaseException:
                self._give_up(count, turn)
                raise
        else:
            self.active += count
        started = time.monotonic()
        try:
            yield
        finally:
            self._mean_s = _SMOOTHING * self._mean_s + (1 - _SMOOTHING) * (time.monotonic() - started)
            self.active -= count
            self._call()

    def drain(self) -> None:
        """Refuse all that wait, and all that come from now on."""
        self._is_draining = True
        for _, turn in self._waiting:
            if not turn.done():
                turn.set_exception(ending())

    def _give_up(self, count: int, turn: "asyncio.Future[None]") -> None:
        if turn.done() and not turn.cancelled() and turn.exception() is None:  # called, and cancelled before it came
            self.active -= count
        else:
            self._waiting = deque(each for each in self._waiting if each[1] is not turn)
        self._call()

    def _call(self) -> None:
        while self._waiting and self.active + self._waiting[0][0] <= self.count:
            count, turn = self._waiting.popleft()
            if not turn.done():
                self.active += count
                turn.set_result(None)
