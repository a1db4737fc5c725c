"""Interface of the runtime to schedulers: sequences, and steps that take the next ids of any of them."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeblt.errors import EdgebltError
from edgeblt.runtime.buffers import Chunk
from edgeblt.runtime.state.cache import PIECE_BYTES
from edgeblt.runtime.state.snapshot import StateSnapshot

StepResult = Chunk | EdgebltError


class BatchSequence(Protocol):
    """One of the sequences of a stepper; all are used by one thread."""

    @property
    def position(self) -> int:
        """Number of ids read."""
        ...

    @property
    def ids(self) -> NDArray[np.int64]:
        """All ids read, int64, as a copy."""
        ...

    def rollback(self, position: int) -> None:
        """Forget everything after the first ids: instant within 32 ids, further back they are read again."""
        ...

    def fork(self) -> "BatchSequence | None":
        """An independent sequence in the same state; None where there is no room for another."""
        ...

    def snapshot(self, earlier: StateSnapshot | None = None) -> StateSnapshot:
        """A copy of the state, from which sequences and sessions of the model start.

        earlier: a copy after fewer ids of the same text, with which this one shares memory.
        """
        ...

    def close(self) -> None:
        """Give its memory back; it is not used afterwards."""
        ...


class StepPart(NamedTuple):
    """The next ids of one sequence, int64 [T], T being 1 to `room(sequence.position)`."""

    sequence: BatchSequence
    ids: NDArray[np.int64]


class Stepper(Protocol):
    """Runs steps over its sequences, within a budget of memory."""

    @property
    def is_batched(self) -> bool:
        """Whether a step reads weights once for all its sequences, and not once for each."""
        ...

    @property
    def state_bytes(self) -> int:
        """Bytes that the states of all open sequences take."""
        ...

    def open(self, expected: int, start: StateSnapshot | None = None) -> BatchSequence | None:
        """A new sequence; None where there is no room for one that reads so many ids. The first gets room.

        start: a copy of the state that it starts from; None, the default, is the beginning.

        Raises EdgebltError where the memory ends before all of `start` is copied.
        """
        ...

    def fits(self, parts: Sequence[StepPart]) -> bool:
        """Whether there is memory for these parts, even if each of their ids completes a patch."""
        ...

    def run(self, parts: Sequence[StepPart]) -> list[StepResult]:
        """Read the ids of all parts, which are of different sequences.

        Gives for each part its results, valid until the next step, or the error that only its sequence has; that
        sequence is at its former position.
        """
        ...


def expected_patches(count: int) -> int:
    """Patches that so many ids are expected to complete, rather too many: those of most texts are longer."""
    return -(-count // 3)


def room(position: int) -> int:
    """Most ids that a sequence at `position` may give to one step: no step crosses a multiple of 128 positions."""
    return PIECE_BYTES - position % PIECE_BYTES
