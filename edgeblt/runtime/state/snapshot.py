"""Copies of a sequence's state that never change, from which any number of sequences start."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeblt.bundle.contract import StageName
from edgeblt.runtime.state.device_array import Array


class CacheSnapshot(NamedTuple):
    """Copy of the filled slots of one stage's cache.

    first: position of the oldest slot.
    length: number of slots.
    segments: consecutive runs of slots, each with an array [1, kv heads, slots, slot width] per buffer. Snapshots of
        the same text share those that they have in common, where the cache has no window.
    forgotten: the slots before these that the cache keeps for rolling back, an array per buffer; empty if there are
        none.
    """

    first: int
    length: int
    segments: tuple[tuple[Array, ...], ...]
    forgotten: tuple[Array, ...] = ()


class RowsSnapshot(NamedTuple):
    """Copy of a history of rows: `rows` [n, width] from index `first` on."""

    first: int
    rows: Array

    @property
    def end(self) -> int:
        """Index after the newest row."""
        return self.first + len(self.rows)


@dataclass(frozen=True, eq=False)
class StateSnapshot:
    """Copy of a `SequenceState` that has read nothing ahead.

    ids: all ids read, int32 [position].
    patch_starts: positions known to start a patch, int64 [patches + 1], the first being 0.
    caches: keys and values by stage.
    histories: rows by the name of the history in `SequenceState`.
    """

    ids: NDArray[np.int32]
    patch_starts: NDArray[np.int64]
    caches: Mapping[StageName, CacheSnapshot]
    histories: Mapping[str, RowsSnapshot]

    @property
    def position(self) -> int:
        """Number of ids read."""
        return len(self.ids)

    @property
    def patch_count(self) -> int:
        """Number of completed patches."""
        return len(self.patch_starts) - 1

    def arrays(self) -> Iterator[Array]:
        """All arrays; several snapshots may share one."""
        yield self.ids
        yield self.patch_starts
        for history in self.histories.values():
            yield history.rows
        for cache in self.caches.values():
            for segment in (*cache.segments, cache.forgotten):
                yield from segment
