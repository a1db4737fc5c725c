"""One text under way in a batch: what it still has to read, how it goes on, and how it ended."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgeblt.decoding.sampling import Sampler
from edgeblt.errors import EdgebltError
from edgeblt.ids import OFFSET
from edgeblt.runtime.batch.stepper import BatchSequence

Reason = Literal["eos", "length", "cancelled", "error"]


@dataclass(frozen=True)
class End:
    """How a text ended: the model ended it, it reached its length, it was cancelled, or the model failed on it."""

    reason: Reason
    error: EdgebltError | None = None


Deliver = Callable[["bytes | End"], None]
"""Takes each byte of a text as it is generated, and in the end how it ended."""


class BatchText:
    """A text that is generated in a batch. It reads `unread`, then chooses an id, which it reads next.

    sequence: its state, None while it waits; all it has read is read again when it gets another.
    """

    def __init__(self, ids: NDArray[np.int64], sampler: Sampler, most: int, deliver: Deliver) -> None:
        """Start with the ids of a prompt, BOS first; at most `most` bytes are generated."""
        self.unread: list[int] = ids.tolist()
        self.sequence: BatchSequence | None = None
        self.turn = 0  # number of the step in which it last read
        self.is_cancelled = False
        self.end: End | None = None
        self.forks: list[BatchText] = []  # other answers to its prompt, which start when it has read it
        self._sampler, self._left, self._deliver = sampler, most, deliver

    @property
    def is_reading(self) -> bool:
        """Whether it has several ids to read, those of a prompt or those that it read before."""
        return len(self.unread) > 1

    def choose(self, logits: NDArray[np.float32]) -> None:
        """Choose and deliver the next byte, given logits [vocab] after all it has read; ends it where none is left."""
        try:
            chosen = self._sampler.choose(logits)
        except EdgebltError as error:
            return self.finish(End("error", error))
        if chosen in self._sampler.ends:
            return self.finish(End("eos"))
        self._left -= 1
        self.unread = [chosen]
        self._deliver(bytes([chosen - OFFSET]))
        if self._left == 0:
            self.finish(End("length"))

    def finish(self, end: End) -> None:
        """End the text and free its state; nothing is delivered afterwards."""
        if self.end:
            return
        self.end = end
        self.close()
        self._deliver(end)

    def close(self) -> None:
        """Free its state, which it gets back by reading everything again."""
        if self.sequence:
            if not self.end:
                self.unread = [*self.sequence.ids.tolist(), *self.unread]
            self.sequence.close()
            self.sequence = None

    @property
    def is_empty(self) -> bool:
        """Whether it is to have no bytes at all."""
        return self._left == 0
