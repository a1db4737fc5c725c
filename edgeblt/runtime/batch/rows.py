"""The rows of one step, and what runs a model's stages on them."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgeblt.bundle.contract import StageName
from edgeblt.runtime.buffers import Chunk
from edgeblt.runtime.stage_work import StageWork
from edgeblt.runtime.state.sequence import SequenceState


class StepRows:
    """The next ids of several sequences: T rows, each sequence's one after the other.

    states: of the sequences.
    ids: of each, at most up to the next multiple of 128 positions.
    slots: the place of each sequence's carried row.
    counts, starts, own: number of rows of each sequence, the first of them, and all of them.
    positions, patches: numbers of ids and of completed patches of each sequence before the step.
    """

    def __init__(self, states: Sequence[SequenceState], ids: Sequence[NDArray[np.int64]], slots: Sequence[int]) -> None:
        self.states, self.ids, self.slots = states, ids, slots
        self.counts = [len(some) for some in ids]
        *self.starts, self.count = itertools.accumulate(self.counts, initial=0)
        self.own = [slice(start, start + count) for start, count in zip(self.starts, self.counts, strict=True)]
        self.positions = [state.position for state in states]
        self.patches = [state.patch_count for state in states]
        self._is_single = self.count == len(states)
        if not self._is_single:
            self._owners = np.repeat(np.arange(len(states)), self.counts)
            self._behind = np.arange(self.count) - np.repeat(self.starts, self.counts)

    def each(self, values: Sequence[int]) -> NDArray[np.int64]:
        """The value of each row's sequence, int64 [T]."""
        every = np.array(values, np.int64)
        return every if self._is_single else every[self._owners]

    def running(self, values: Sequence[int]) -> NDArray[np.int64]:
        """Values that go up by 1 from row to row, from that of each row's sequence on, int64 [T]."""
        first = self.each(values)
        return first if self._is_single else first + self._behind

    @property
    def owners(self) -> NDArray[np.int64]:
        """The sequence of each row, int64 [T]."""
        return np.arange(self.count) if self._is_single else self._owners


class StepRunner(Protocol):
    """Runs the stages on the rows of a step."""

    @property
    def work(self) -> Mapping[StageName, StageWork]:
        """Work of each stage so far."""
        ...

    def run(self, rows: StepRows) -> list[Chunk]:
        """Results of each sequence's rows, whose states then hold them."""
        ...
