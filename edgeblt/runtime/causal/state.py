"""The state of one sequence of a one-stage transformer: ids, and keys and values that grow with the text."""

from collections.abc import Mapping

import numpy as np

from edgeblt.bundle.contract import StageContract, StageName
from edgeblt.runtime.state.cache import KeyValueCache
from edgeblt.runtime.state.histories import IdHistory, RowHistory
from edgeblt.runtime.state.sequence import SequenceState
from edgeblt.runtime.state.snapshot import StateSnapshot


def context_of(contract: StageContract) -> int:
    """The number of ids before each that the graph reads: its first input is `windows` [T, N]."""
    window = contract.inputs[0].shape[1]
    assert isinstance(window, int)
    return window - 1


class CausalState(SequenceState):
    """State after `position` ids; it is shortened to any number of them at once."""

    def __init__(self, caches: Mapping[StageName, KeyValueCache], context: int) -> None:
        """Start empty, with the stage's empty cache. `context`: as `context_of` gives it."""
        self.position = 0
        self.ids = IdHistory(context)
        self.caches = caches
        (self.cache,) = caches.values()

    @property
    def patch_count(self) -> int:
        """Number of completed patches: every byte is one."""
        return max(self.position - 1, 0)

    @property
    def histories(self) -> dict[str, RowHistory]:
        return {}

    def clear(self) -> None:
        """Return to an empty sequence."""
        self.position = 0
        self.cache.clear()

    def can_rewind(self, position: int) -> bool:
        return True

    def rewind(self, position: int) -> None:
        """Forget everything after the first `position` ids."""
        self.cache.rewind(position)
        self.position = position

    def copy_from(self, other: SequenceState) -> None:
        """Become a copy of `other`, a state of the same model."""
        assert isinstance(other, CausalState)
        self.position = other.position
        self.ids.copy_from(other.ids)
        self.cache.copy_from(other.cache)

    def snapshot(self, earlier: StateSnapshot | None = None) -> StateSnapshot:
        """A copy of the state; `earlier` is one of the same text after fewer ids, with which it shares arrays."""
        ((stage, cache),) = self.caches.items()
        return StateSnapshot(
            self.ids.ids(self.position).astype(np.int32),
            np.arange(self.patch_count + 1, dtype=np.int64),
            {stage: cache.snapshot(earlier.caches[stage] if earlier else None)},
            {},
        )

    def load(self, snapshot: StateSnapshot) -> None:
        """Become what the snapshot, of the same model, is a copy of."""
        self.clear()
        self.ids.store(0, snapshot.ids.astype(np.int64))
        (cache,) = snapshot.caches.values()
        self.cache.load(cache)
        self.position = snapshot.position
