"""Steps that run one sequence after the other, each a session of its own: for any provider, and without the library."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgeblt.errors import EdgebltError
from edgeblt.runtime.batch.stepper import BatchSequence, StepPart, StepResult, expected_patches
from edgeblt.runtime.session import Session
from edgeblt.runtime.state.snapshot import StateSnapshot


class SessionSequence:
    """A sequence that is a session."""

    def __init__(self, stepper: "OneByOneStepper", session: Session) -> None:
        self._stepper, self.session = stepper, session

    @property
    def position(self) -> int:
        return self.session.position

    @property
    def ids(self) -> NDArray[np.int64]:
        return self.session.ids

    def rollback(self, position: int) -> None:
        self.session.rollback(position)

    def fork(self) -> BatchSequence | None:
        size = sum(self.session.cache_bytes.values())
        return self._stepper.add(self.session.fork) if self._stepper.has_room(size) else None

    def snapshot(self, earlier: StateSnapshot | None = None) -> StateSnapshot:
        return self.session.snapshot(earlier)

    def close(self) -> None:
        self._stepper.remove(self)


class OneByOneStepper:
    """Runs the parts of a step in turn: the same results as a step at once, but weights are read for each part."""

    is_batched = False

    def __init__(self, new_session: Callable[[], Session], most_sequences: int, memory: int) -> None:
        """Start without sequences; `memory`, in bytes, bounds their states."""
        self._new_session, self._most, self._memory = new_session, most_sequences, memory
        self._sequences: list[SessionSequence] = []

    @property
    def state_bytes(self) -> int:
        return sum(sum(sequence.session.cache_bytes.values()) for sequence in self._sequences)

    def has_room(self, size: int) -> bool:
        """Whether there may be another sequence, with a state of so many bytes."""
        if not self._sequences:
            return True
        return len(self._sequences) < self._most and self.state_bytes + size <= self._memory

    def open(self, expected: int, start: StateSnapshot | None = None) -> BatchSequence | None:
        session = self._new_session()
        patches = max(expected_patches(expected), start.patch_count if start else 0)
        if not self.has_room(sum(session.cache_bytes.values()) + session.state.growth(patches)):
            return None
        if start:
            session.start_from(start)
        return self.add(lambda: session)

    def add(self, new_session: Callable[[], Session]) -> SessionSequence:
        sequence = SessionSequence(self, new_session())
        self._sequences.append(sequence)
        return sequence

    def remove(self, sequence: SessionSequence) -> None:
        if sequence in self._sequences:
            self._sequences.remove(sequence)

    def fits(self, parts: Sequence[StepPart]) -> bool:
        growth = 0
        for sequence, ids in parts:
            assert isinstance(sequence, SessionSequence)
            growth += sequence.session.state.growth(len(ids))
        return self.state_bytes + growth <= self._memory

    def run(self, parts: Sequence[StepPart]) -> list[StepResult]:
        return [_fed(sequence, ids) for sequence, ids in parts]


def _fed(sequence: BatchSequence, ids: NDArray[np.int64]) -> StepResult:
    assert isinstance(sequence, SessionSequence)
    try:
        (chunk,) = sequence.session.run(ids)
    except EdgebltError as error:
        return error
    return chunk
