"""The state of one sequence: everything that the results for its next id depend on, as arrays and a few numbers."""

from bisect import bisect_right
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edgeblt.bundle.config import ModelConfig
from edgeblt.bundle.contract import STATE_WIDTH, StageContract, StageName, cross_row_width
from edgeblt.runtime.state.cache import KeyValueCache
from edgeblt.runtime.state.device_array import Array, DeviceMemory, zeros
from edgeblt.runtime.state.histories import IdHistory, RowHistory
from edgeblt.runtime.state.homes import Homes
from edgeblt.runtime.state.snapshot import StateSnapshot


class SequenceState:
    """State after `position` ids. It is cleared, copied and shortened as one.

    position: number of ids read.
    patch_starts: positions known to start a patch, the first being 0.
    ids: all ids read; they are not cleared, as a sequence that was interrupted is read again from them.
    caches: keys and values by stage. The patcher's may run ahead of `position`.
    patcher_states: the patcher's rows of state by position; they may run ahead as its cache does.
    byte_vectors: the encoder's results by position, at least of the open patch.
    cross_rows: what the decoder attends to, by patch, for rolling back.
    """

    def __init__(
        self,
        config: ModelConfig,
        contracts: Mapping[StageName, StageContract],
        memories: Mapping[StageName, DeviceMemory | None],
        rollback: int,
        caches: Mapping[StageName, KeyValueCache] | None = None,
        carried_row: Array | None = None,
    ) -> None:
        """Start empty, each stage's arrays in its memory. Rolling back by `rollback` positions is to stay possible.

        caches, carried_row: parts of memory that several sequences share, where they do.
        """
        self.homes = homes = Homes.of(memories, contracts)
        row_width, self._rollback = cross_row_width(config), rollback
        self.position = 0
        self.patch_starts = [0]
        self.ids = IdHistory(config.hashes.context)
        self.caches: Mapping[StageName, KeyValueCache] = caches or {
            name: KeyValueCache(contract.cache, rollback, memories[name])
            for name, contract in contracts.items()
            if contract.cache
        }
        self.patcher_states = RowHistory(STATE_WIDTH)
        self.byte_vectors = RowHistory(config.encoder.hidden_size, memory=homes.byte_vectors)
        self.cross_rows = RowHistory(row_width, homes.row_dtype, homes.rows)
        self._carried_row: Array = (
            zeros((1, row_width), homes.row_dtype, homes.rows) if carried_row is None else carried_row
        )
        self._carried_patch = -1  # the patch whose cross row `_carried_row` is

    @property
    def patch_count(self) -> int:
        """Number of completed patches, whose successor is known to start at `position` or before."""
        return len(self.patch_starts) - 1

    @property
    def _histories(self) -> tuple[RowHistory, RowHistory, RowHistory]:
        return self.patcher_states, self.byte_vectors, self.cross_rows

    @property
    def histories(self) -> dict[str, RowHistory]:
        """Histories of rows by name."""
        names = ("patcher_states", "byte_vectors", "cross_rows")
        return dict(zip(names, self._histories, strict=True))

    @property
    def stage_arrays(self) -> list[Array]:
        """Arrays in the memory of the stages that read or write them, as views."""
        caches = [buffer for cache in self.caches.values() for buffer in cache.buffers]
        histories = [rows.rows(rows.first) for rows in (self.byte_vectors, self.cross_rows)]
        return [*caches, *histories, self._carried_row]

    def growth(self, count: int) -> int:
        """Bytes by which caches grow for `count` more ids, if each completes a patch."""
        return sum(cache.growth(count) for cache in self.caches.values())

    def clear(self) -> None:
        """Return to an empty sequence."""
        self.position, self.patch_starts, self._carried_patch = 0, [0], -1
        for history in self._histories:
            history.clear()
        for cache in self.caches.values():
            cache.clear()

    def copy_from(self, other: "SequenceState") -> None:
        """Become a copy of `other`, a state of the same model that has read nothing ahead."""
        self.position, self.patch_starts = other.position, other.patch_starts.copy()
        self._carried_patch = other._carried_patch
        self._carried_row[:] = other._carried_row
        self.ids.copy_from(other.ids)
        for own, theirs in zip(self._histories, other._histories, strict=True):
            own.copy_from(theirs)
        for name, cache in self.caches.items():
            cache.copy_from(other.caches[name])

    def snapshot(self, earlier: StateSnapshot | None = None) -> StateSnapshot:
        """A copy of a state that has read nothing ahead.

        earlier: one of the same text after fewer ids, with which the copy shares arrays.
        """
        return StateSnapshot(
            self.ids.ids(self.position).astype(np.int32),
            np.array(self.patch_starts, np.int64),
            {name: cache.snapshot(earlier.caches[name] if earlier else None) for name, cache in self.caches.items()},
            {name: history.snapshot() for name, history in self.histories.items()},
        )

    def load(self, snapshot: StateSnapshot) -> None:
        """Become what the snapshot, of the same model, is a copy of."""
        self.clear()
        self.ids.store(0, snapshot.ids.astype(np.int64))
        for name, history in self.histories.items():
            history.load(snapshot.histories[name])
        for name, cache in self.caches.items():
            cache.load(snapshot.caches[name])
        self.position, self.patch_starts = snapshot.position, snapshot.patch_starts.tolist()

    def can_rewind(self, position: int) -> bool:
        """Whether `rewind` can shorten the sequence to `position`: all that its next id needs is still there."""
        patch_count = bisect_right(self.patch_starts, position) - 1
        return (
            position > 0
            and self.patcher_states.first <= position - 1
            and self.byte_vectors.first <= self.patch_starts[patch_count]
            and (patch_count == 0 or self.cross_rows.first <= patch_count - 1)
            and all(cache.can_rewind(position) for name, cache in self.caches.items() if name != "global")
        )

    def rewind(self, position: int) -> None:
        """Forget everything after the first `position` ids, and what the patcher read ahead."""
        del self.patch_starts[bisect_right(self.patch_starts, position) :]
        for name, cache in self.caches.items():
            if name != "patcher":
                cache.rewind(self.patch_count if name == "global" else position)
        self.rewind_patcher(position)
        self.byte_vectors.rewind(position)
        self.cross_rows.rewind(self.patch_count)
        if self._carried_patch >= self.patch_count:
            self._carried_patch = -1
        self.position = position

    def rewind_patcher(self, position: int) -> None:
        """Forget what the patcher read beyond the first `position` ids."""
        self.patcher_states.rewind(position)
        if cache := self.caches.get("patcher"):
            cache.rewind(position)

    def rewind_local(self) -> None:
        """Forget what encoder and decoder read beyond `position`."""
        for name in ("encoder", "decoder"):
            self.caches[name].rewind(self.position)

    def append(self, byte_vectors: Array, starts: NDArray[np.bool_], completed: int) -> None:
        """Count the next T ids.

        byte_vectors: [T, width].
        starts: whether the id after each starts a patch.
        completed: number of patches that they complete, as many as there are starts.
        """
        count = len(starts)
        oldest_patch = bisect_right(self.patch_starts, max(self.position + count - self._rollback, 0)) - 1
        self.byte_vectors.append(byte_vectors, self.patch_starts[oldest_patch])
        if completed:
            self.patch_starts.extend((np.flatnonzero(starts) + (self.position + 1)).tolist())
        self.position += count

    def open_vectors(self) -> Array:
        """Byte vectors [n, width] of the open patch, as a view."""
        vectors: Array = self.byte_vectors.rows(self.patch_starts[-1])
        return vectors

    def carried_row(self, patch: int) -> Array:
        """Cross-attention row [1, width] of the patch before `patch`; zeros before the first. Always the same array."""
        self.carry(patch)
        return self._carried_row

    def carry(self, patch: int) -> None:
        """Set the row that `carried_row` gives."""
        if patch == 0:
            self._carried_row[:] = 0  # there is no latent yet; nothing of a text rolled back may stay
        elif self._carried_patch != patch - 1:  # rolled back
            self._carried_row[:] = self.cross_rows.rows(patch - 1, patch)
            self._carried_patch = patch - 1

    def append_cross_rows(self, first_patch: int, rows: Array) -> None:
        """Add the rows [n, width] of the patches from `first_patch` on, without those too old to be rolled back to."""
        count = len(rows)
        self._carried_patch = first_patch + count - 1
        if not count:
            return
        self._carried_row[:] = rows[count - 1 :]
        skipped = max(count - self._rollback - 1, 0)
        if skipped:
            self.cross_rows.restart(first_patch + skipped)
        oldest_patch = bisect_right(self.patch_starts, max(self.position - self._rollback, 0)) - 1
        self.cross_rows.append(rows[skipped:], oldest_patch - 1)
