"""One text under way in a batch: what it still has to read, how it goes on, and how it ended."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgeblt.decoding.output import EndReason
from edgeblt.decoding.settings import GenerationSettings, text_output, text_sampler
from edgeblt.errors import EdgebltError
from edgeblt.ids import BOS, OFFSET, encode
from edgeblt.runtime.batch.stepper import BatchSequence

SHORT = 32  # ids that a text may read in a step without counting as a reader: one chosen, and those forced after it


@dataclass(frozen=True)
class BatchEnd:
    """How a text in a batch ended.

    reason: as in `decoding.output.TextEnd`, or "cancelled", or "error" where the model failed on it.
    stop: the stop sequence that was generated, where one was.
    error: what failed, where something did.
    """

    reason: EndReason | Literal["cancelled", "error"]
    stop: bytes | None = None
    error: EdgebltError | None = None


Deliver = Callable[["bytes | BatchEnd"], None]
"""Takes each piece of a text as it becomes certain, and in the end how it ended."""


class BatchText:
    """A text that is generated in a batch. It reads `unread`, then chooses an id, which it reads next.

    sequence: its state, None while it waits; all it has read is read again when it gets another.
    """

    def __init__(self, prompt: bytes, settings: GenerationSettings, ends: Sequence[int], deliver: Deliver) -> None:
        """Start before the prompt; `settings` are completed, and `ends` the ids that end texts."""
        self.unread: list[int] = [BOS, *encode(prompt).tolist()]
        self.sequence: BatchSequence | None = None
        self.turn = 0  # number of the step in which it last read
        self.is_cancelled = False
        self.end: BatchEnd | None = None
        self.forks: list[BatchText] = []  # other answers to its prompt, which start when it has read it
        self._sampler, self._output = text_sampler(settings, ends, prompt), text_output(settings, prompt)
        self._left, self._has_begun, self._deliver = settings.max_new_bytes, False, deliver

    @property
    def is_reading(self) -> bool:
        """Whether it has many ids to read, those of a prompt or those that it read before."""
        return len(self.unread) > SHORT

    @property
    def is_empty(self) -> bool:
        """Whether it is to have no bytes at all."""
        return self._left == 0

    def choose(self, logits: NDArray[np.float32]) -> None:
        """Choose and deliver what comes next, given logits [vocab] after all it has read; ends it where nothing is."""
        try:
            self.unread = self._next_ids(logits)
        except EdgebltError as error:
            return self.finish(BatchEnd("error", error=error))
        self._has_begun = True
        self._left -= len(self.unread)
        for id in self.unread:
            if id in self._sampler.ends:
                return self._end_with("eos")
            for piece in self._output.take(id - OFFSET):
                self._deliver(piece)
            if self._output.stop is not None:
                return self.finish(BatchEnd("stop", self._output.stop))
        if self._sampler.is_complete:
            self._end_with("constraint")
        elif self._left <= 0:
            self._end_with("length")

    def _next_ids(self, logits: NDArray[np.float32]) -> list[int]:
        """The next id with those forced after it; none where a constraint is complete from the beginning."""
        if not self._has_begun:
            if self._sampler.is_complete:
                return []
            if forced := self._sampler.forced(self._left):
                return forced
        chosen = self._sampler.choose(logits)
        return [chosen] if chosen in self._sampler.ends else [chosen, *self._sampler.forced(self._left - 1)]

    def _end_with(self, reason: EndReason) -> None:
        for piece in self._output.finish():
            self._deliver(piece)
        self.finish(BatchEnd(reason))

    def finish(self, end: BatchEnd) -> None:
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
