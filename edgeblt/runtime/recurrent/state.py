"""The state of one sequence of a recurrent model: a few arrays, of one size however long the text.

Such a state cannot be shortened. Earlier ones are kept instead, and what lies between the nearest and a position is
read again together with the next id: that of the last run's beginning, and copies of two more at least `SPACING` ids
apart. So four states are in memory in all.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeblt.bundle.contract import StageContract
from edgeblt.runtime.state.histories import IdHistory, RowHistory
from edgeblt.runtime.state.sequence import SequenceState
from edgeblt.runtime.state.snapshot import RowsSnapshot, StateSnapshot

Shapes = Sequence[tuple[int, ...]]

NOWHERE = 1 << 62  # position of states that nothing can be returned to in
SPACING = 32  # ids between kept states
KEPT = 2
STATES = "recurrent_states"


def state_shapes(contract: StageContract, slots: int = 1) -> Shapes:
    """Shapes of a stage's states, with so many slots where they have slots."""
    specs = contract.outputs[1:]
    return [tuple(size if isinstance(size, int) else slots for size in spec.shape) for spec in specs]


class States:
    """Arrays after `position` ids; the same arrays as long as this object lives.

    slot: number of the slot that they are, where they lie in arrays of several sequences.
    """

    def __init__(self, arrays: Sequence[NDArray[np.float32]], slot: int = 0) -> None:
        """Start with arrays of zeros, the state before the first byte."""
        self.arrays, self.slot = arrays, slot
        self.position = 0

    @classmethod
    def zeros(cls, shapes: Shapes) -> "States":
        return cls([np.zeros(shape, np.float32) for shape in shapes])

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)

    def clear(self) -> None:
        for array in self.arrays:
            array.fill(0)
        self.position = 0

    def copy_from(self, other: "States") -> None:
        for own, theirs in zip(self.arrays, other.arrays, strict=True):
            own[:] = theirs
        self.position = other.position

    def flat(self) -> NDArray[np.float32]:
        """All numbers as one row, copied."""
        return np.concatenate([array.reshape(-1) for array in self.arrays])

    def load(self, row: NDArray[np.float32], position: int) -> None:
        """Become what `flat` gave after `position` ids."""
        start = 0
        for array in self.arrays:
            array[:] = row[start : start + array.size].reshape(array.shape)
            start += array.size
        self.position = position


class _StateRow(RowHistory):
    """Form of a state's row in saved sessions; it holds no rows."""

    def __init__(self, width: int) -> None:
        self._width = width

    @property
    def form(self) -> tuple[int, str]:
        return self._width, "float32"


class RecurrentState(SequenceState):
    """State after `position` ids, of which `now` may have read fewer: the rest is read with the next.

    now: states that runs start from.
    before: states that the next run writes; until then those before the last run.
    """

    def __init__(self, now: States, before: States) -> None:
        """Start empty, in states of zeros."""
        self.position = 0
        self.ids = IdHistory(0)
        self.caches = {}
        self.now, self.before = now, before
        self._kept: list[States] = []  # never written to again, so that forks share them

    @property
    def patch_count(self) -> int:
        """Number of completed patches: every byte is one."""
        return max(self.position - 1, 0)

    @property
    def histories(self) -> dict[str, RowHistory]:
        return {STATES: _StateRow(self._elements)}

    @property
    def _elements(self) -> int:
        return sum(array.size for array in self.now.arrays)

    @property
    def nbytes(self) -> int:
        return sum(states.nbytes for states in (self.now, self.before, *self._kept))

    def growth(self, count: int) -> int:
        """Bytes by which the state grows for `count` more ids: none."""
        return 0

    def unread(self) -> NDArray[np.int64]:
        """Ids before `position` that `now` has not read."""
        return self.ids.windows(self.now.position, self.position - self.now.position)[:, 0]

    def advance(self, position: int) -> None:
        """Take what a run wrote into `before` as the states after `position` ids."""
        self.before.position = position
        self.now, self.before = self.before, self.now
        self.position = max(self.position, position)
        self._keep(self.now)

    def advance_in_place(self, position: int) -> None:
        """Take what a run wrote over `now` as the states after `position` ids."""
        self.now.position = position
        self.position = max(self.position, position)
        self._keep(self.now)

    def advance_by_two(self, middle: int, position: int) -> None:
        """Take what a run wrote into `before` after `middle` ids, and from there into `now` after `position` ids."""
        self.before.position, self.now.position = middle, position
        self.position = position
        self._keep(self.before)

    def _keep(self, states: States) -> None:
        newest = self._kept[-1].position if self._kept else 0
        if states.position - newest >= SPACING:
            is_free = len(self._kept) == KEPT and not self._shared
            copy = self._kept.pop(0) if is_free else States.zeros([array.shape for array in states.arrays])
            copy.copy_from(states)
            self._kept = [*self._kept, copy][-KEPT:]

    _shared = False  # a fork refers to the kept states too

    def clear(self) -> None:
        """Return to an empty sequence."""
        self.position, self._kept = 0, []
        self.now.clear()
        self.before.position = NOWHERE

    def can_rewind(self, position: int) -> bool:
        return True

    def rewind(self, position: int) -> None:
        """Forget everything after the first `position` ids."""
        self._kept = [kept for kept in self._kept if kept.position <= position]
        if self.now.position > position:
            reachable = [states for states in (*self._kept, self.before) if states.position <= position]
            nearest = max(reachable, key=lambda states: states.position, default=None)
            if nearest is self.before:
                self.now, self.before = self.before, self.now
            elif nearest is None:
                self.now.clear()
            else:
                self.now.copy_from(nearest)
        if self.before.position > position:
            self.before.position = NOWHERE
        self.position = position

    def copy_from(self, other: SequenceState) -> None:
        """Become a copy of `other`, a state of the same model."""
        assert isinstance(other, RecurrentState)
        self.position = other.position
        self.ids.copy_from(other.ids)
        self.now.copy_from(other.now)
        self.before.position = NOWHERE
        self._kept = list(other._kept)
        self._shared = other._shared = True

    def snapshot(self, earlier: StateSnapshot | None = None) -> StateSnapshot:
        """A copy of a state that has read all its ids."""
        assert self.now.position == self.position
        row = self.now.flat()[None] if self.position else np.empty((0, self._elements), np.float32)
        return StateSnapshot(
            self.ids.ids(self.position).astype(np.int32),
            np.arange(self.patch_count + 1, dtype=np.int64),
            {},
            {STATES: RowsSnapshot(self.position - len(row), row)},
        )

    def load(self, snapshot: StateSnapshot) -> None:
        """Become what the snapshot, of the same model, is a copy of."""
        self.clear()
        self.ids.store(0, snapshot.ids.astype(np.int64))
        self.position = snapshot.position
        if snapshot.position:
            row: NDArray[np.float32] = np.asarray(snapshot.histories[STATES].rows)[-1]
            self.now.load(row, snapshot.position)
