"""Key-value caches bounded by their attention window, and histories of rows and ids for rolling back."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import DTypeLike, NDArray

from edgeblt.bundle.contract import CacheSpec
from edgeblt.runtime.device_array import Array, DeviceMemory, empty, zeros

PIECE_BYTES = 128  # positions between two shifts of a windowed cache; no run of a graph crosses one
DEVICE_SLACK = 1024  # on a GPU: slots filled beyond the necessary ones before a shift, which takes long there
_INITIAL_CAPACITY = 128
_SPARE = 1  # slots behind the filled ones that a graph may write to: portable bodies attend with one row more


def pieces(position: int, count: int) -> Iterator[slice]:
    """Slices of `count` ids at `position`, cut at multiples of `PIECE_BYTES`."""
    start = 0
    while start < count:
        end = min(start + PIECE_BYTES - (position + start) % PIECE_BYTES, count)
        yield slice(start, end)
        start = end


class KeyValueCache:
    """Key and value buffers [1, kv heads, capacity, head_dim] of one stage, one of each per layer.

    Slot i holds position `first + i`. A cache without a window doubles its capacity when full. A windowed one is
    bounded: it shifts its content to the front where the text crosses a multiple of `PIECE_BYTES`, and back where it is
    rolled back across one. So the slots that a position attends to follow from the position alone, however the text
    was fed: ONNX Runtime sums slot by slot, and another order would round differently. On a GPU shifts are rare, and
    depend on how the text was fed.
    """

    def __init__(self, spec: CacheSpec, rollback: int, memory: DeviceMemory | None = None) -> None:
        """Start empty, in `memory`, None being the host's."""
        self.spec = spec
        self._memory = memory
        self.first = 0
        self.length = 0
        self._rollback = rollback
        self._forgotten: list[Array] = []  # on the host: the slots of every buffer that the last shift dropped
        exponents = np.arange(0, spec.rotary_dim, 2, dtype=np.float32) / np.float32(spec.rotary_dim)
        self._frequencies = np.float32(1) / np.float32(spec.rope_theta) ** exponents
        self.cosines, self.sines = self._placed(self._rotations(0, _INITIAL_CAPACITY))
        self.buffers = [self._allocate(_INITIAL_CAPACITY) for _ in range(2 * spec.layer_count)]

    @property
    def capacity(self) -> int:
        return int(self.buffers[0].shape[2])

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in (*self.buffers, *self._forgotten))

    def reserve(self, count: int) -> bool:
        """Make room for `count` more positions; True if the buffers were replaced by larger ones."""
        keep = self._kept(count)
        if self.length > keep:
            self._drop(self.length - keep)
        needed = self.length + count + _SPARE
        if needed <= self.capacity:
            return False
        self._grow(max(needed, min(2 * self.capacity, self._enough or 2 * self.capacity)))
        return True

    def advance(self, count: int) -> int:
        """Count the next `count` positions, which a run is about to fill; returns the filled slots with them."""
        self.length += count
        return self.length

    @property
    def _enough(self) -> int | None:
        """Largest useful capacity of a windowed cache, in slots; None without a window."""
        if self.spec.window is None:
            return None
        more = PIECE_BYTES if self._memory is None else self._rollback + DEVICE_SLACK
        return self.spec.window - 1 + more + _SPARE

    def _kept(self, count: int) -> int:
        """Number of cached positions that must stay when the next `count` come."""
        if self.spec.window is None:
            return self.length
        if self._memory is None:
            position = self.first + self.length
            return position - self._first_slot(position)
        # The new positions themselves are the nearest to roll back over.
        keep = self.spec.window - 1 + max(self._rollback - count, 0)
        return keep if self.length + count > keep + max(count, DEVICE_SLACK) else self.length

    def _first_slot(self, position: int) -> int:
        """Position in slot 0 of a cache on the host when `position` is the next one."""
        if self.spec.window is None:
            return 0
        return max(position - position % PIECE_BYTES - (self.spec.window - 1), 0)

    def _drop(self, count: int) -> None:
        """Forget the `count` oldest positions: attention spends time on every filled slot, attended to or not."""
        if self._memory is None:
            self._forgotten = [buffer[:, :, :count].copy() for buffer in self.buffers]
        for buffer in self.buffers:
            buffer[:, :, : self.length - count] = buffer[:, :, count : self.length]
        self.first, self.length = self.first + count, self.length - count
        self._rotate_from(self.first)

    def _take_back(self, kept: int) -> None:
        """Undo the last `_drop`, for the first `kept` positions after those it dropped."""
        count = self._forgotten[0].shape[2]
        for buffer, forgotten in zip(self.buffers, self._forgotten, strict=True):
            buffer[:, :, count : count + kept] = buffer[:, :, :kept].copy()
            buffer[:, :, :count] = forgotten
        self.first, self._forgotten = self.first - count, []
        self._rotate_from(self.first)

    def can_rewind(self, position: int) -> bool:
        """Whether everything in the window of `position` is still cached."""
        if self.first == 0:
            return True
        if self._memory is None:
            forgotten = self._forgotten[0].shape[2] if self._forgotten else 0
            return self._first_slot(position) >= self.first - forgotten
        assert self.spec.window is not None
        return position - self.first >= self.spec.window - 1

    def rewind(self, position: int) -> None:
        if self._memory is None and self._first_slot(position) < self.first:
            self._take_back(max(position - self.first, 0))
        self.length = position - self.first

    def clear(self) -> None:
        self.first = self.length = 0
        self._forgotten = []
        self._rotate_from(0)

    def copy_from(self, other: "KeyValueCache") -> None:
        self.first, self.length, self._forgotten = other.first, other.length, other._forgotten
        self.cosines, self.sines = other.cosines.copy(), other.sines.copy()
        self.buffers = [buffer.copy() for buffer in other.buffers]

    def _rotate_from(self, first: int) -> None:
        """Update the RoPE tables, in place as they are bound: slot 0 now holds position `first`."""
        self.cosines[:], self.sines[:] = self._rotations(first, len(self.cosines))

    def _rotations(self, first: int, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """RoPE cosines and sines [count, head_dim / 2] from position `first` on, float32 as in `BltRotaryEmbedding`."""
        positions = np.arange(first, first + count, dtype=np.float32)
        angles = np.zeros((count, self.spec.head_dim // 2), np.float32)  # padding of a head is not rotated
        angles[:, : len(self._frequencies)] = positions[:, None] * self._frequencies
        return np.cos(angles), np.sin(angles)

    def _placed(self, tables: tuple[NDArray[np.float32], NDArray[np.float32]]) -> tuple[Array, Array]:
        """The tables in the cache's dtype and memory."""
        if self._memory is None and self.spec.dtype == "float32":
            return tables
        placed = [empty(table.shape, self.spec.dtype, self._memory) for table in tables]
        for array, table in zip(placed, tables, strict=True):
            array[:] = table
        return placed[0], placed[1]

    def _grow(self, capacity: int) -> None:
        larger = [self._allocate(capacity) for _ in self.buffers]
        for new, old in zip(larger, self.buffers, strict=True):
            new[:, :, : self.length] = old[:, :, : self.length]
        tables = self._placed(self._rotations(self.first, capacity))
        self.buffers, (self.cosines, self.sines) = larger, tables  # at once: an interruption leaves one size

    def _allocate(self, capacity: int) -> Array:
        shape = (1, self.spec.kv_head_count, capacity, self.spec.head_dim)
        return zeros(shape, self.spec.dtype, self._memory)  # type: ignore[no-any-return]


class RowHistory:
    """Contiguous rows [width] by absolute index; new ones are appended, the oldest dropped."""

    def __init__(self, width: int, dtype: DTypeLike = np.float32, memory: DeviceMemory | None = None) -> None:
        """Start empty, in `memory`, None being the host's."""
        self._memory = memory
        self._rows: Array = empty((_INITIAL_CAPACITY, width), dtype, memory)
        self.first = 0  # absolute index of the oldest row
        self.end = 0  # absolute index after the newest

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
