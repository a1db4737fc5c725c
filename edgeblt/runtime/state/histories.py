"""Histories of rows and of ids, from which a sequence is rolled back."""

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import DTypeLike, NDArray

from edgeblt.runtime.state.device_array import Array, DeviceMemory, empty
from edgeblt.runtime.state.snapshot import RowsSnapshot

_INITIAL_ROWS = 128


class RowHistory:
    """Contiguous rows [width] by absolute index; new ones are appended, the oldest dropped."""

    def __init__(self, width: int, dtype: DTypeLike = np.float32, memory: DeviceMemory | None = None) -> None:
        """Start empty, in `memory`, None being the host's."""
        self._memory = memory
        self._rows: Array = empty((_INITIAL_ROWS, width), dtype, memory)
        self.first = 0  # absolute index of the oldest row
        self.end = 0  # absolute index after the newest

    @property
    def capacity(self) -> int:
        """Number of rows that there is memory for."""
        return len(self._rows)

    @property
    def form(self) -> tuple[int, str]:
        """Width and dtype of the rows."""
        return int(self._rows.shape[1]), str(self._rows.dtype)

    def append(self, rows: Array, keep_from: int) -> None:
        """Append rows; those before index `keep_from` may be dropped."""
        used, count = self.end - self.first, len(rows)
        if used + count > len(self._rows):
            drop = min(max(keep_from - self.first, 0), used)
            kept = self._rows[drop:used]
            needed = len(kept) + count
            if 2 * needed > len(self._rows):
                larger = empty((2 * needed, self._rows.shape[1]), self._rows.dtype, self._memory)
                larger[: len(kept)] = kept
                self._rows = larger
            else:
                self._rows[: len(kept)] = kept
            self.first += drop
            used -= drop
        self._rows[used : used + count] = rows
        self.end += count

    def rows(self, start: int, end: int | None = None) -> Any:  # an Array
        """Rows from `start` to `end`, by default the newest, as a view that the next `append` may overwrite."""
        assert self.first <= start
        return self._rows[start - self.first : (self.end if end is None else end) - self.first]

    def rewind(self, end: int) -> None:
        self.end = end

    def restart(self, index: int) -> None:
        """Drop all rows; the next one appended has the given index."""
        self.first = self.end = index

    def clear(self) -> None:
        self.restart(0)

    def copy_from(self, other: "RowHistory") -> None:
        self.first, self.end, self._rows = other.first, other.end, other._rows.copy()

    def snapshot(self) -> RowsSnapshot:
        """A copy of all rows."""
        return RowsSnapshot(self.first, self.rows(self.first).copy())

    def load(self, snapshot: RowsSnapshot) -> None:
        """Become what the snapshot is a copy of."""
        self.restart(snapshot.first)
        self.append(snapshot.rows, snapshot.first)


class IdHistory:
    """All ids fed, int64, after the zeros that n-grams at the start of a sequence read."""

    def __init__(self, context: int) -> None:
        self._context = context
        self._keep(np.zeros(context + 1024, np.int64))

    def _keep(self, ids: NDArray[np.int64]) -> None:
        self._ids, self._windows = ids, sliding_window_view(ids, self._context + 1)

    def store(self, position: int, ids: NDArray[np.int64]) -> None:
        end = self._context + position + len(ids)
        if end > len(self._ids):
            larger = np.zeros(2 * end, np.int64)
            larger[: len(self._ids)] = self._ids
            self._keep(larger)
        self._ids[self._context + position : end] = ids

    def ids(self, end: int) -> NDArray[np.int64]:
        """A copy of the first `end` ids."""
        return self._ids[self._context : self._context + end].copy()

    def windows(self, start: int, count: int) -> NDArray[np.int64]:
        """`count` ids from `start` on, each after the context its n-grams read: a view [count, context + 1]."""
        return self._windows[start : start + count]

    def copy_from(self, other: "IdHistory") -> None:
        self._keep(other._ids.copy())
