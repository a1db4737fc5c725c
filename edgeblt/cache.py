"""What a session remembers: key-value caches that forget what no window can see, and rows kept for rolling back."""

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import DTypeLike, NDArray

from edgeblt.contract import CacheSpec
from edgeblt.device_array import Array, DeviceMemory, empty, zeros

SLACK = 32  # slots a windowed cache may fill beyond what it must keep, before it moves its content to the front
DEVICE_SLACK = 1024  # the same on a GPU, where a move takes long, and its attention passes over what no window sees
_INITIAL_CAPACITY = 128


class KeyValueCache:
    """Buffers [1, kv heads, capacity, head_dim] of one stage, a key and a value one per layer.

    Slot i holds position `first + i`. A windowed cache keeps `window - 1` positions plus those to roll back over, so
    its size is bounded; one without a window doubles as it fills.
    """

    def __init__(self, spec: CacheSpec, rollback: int, memory: DeviceMemory | None = None) -> None:
        """In `memory`, or on the host."""
        self.spec = spec
        self._memory = memory
        self.first = 0
        self.length = 0
        self._rollback = rollback
        self._slack = SLACK if memory is None else DEVICE_SLACK
        exponents = np.arange(0, spec.rotary_dim, 2, dtype=np.float32) / np.float32(spec.rotary_dim)
        self._frequencies = np.float32(1) / np.float32(spec.rope_theta) ** exponents
        self.cosines, self.sines = self._placed(self._rotations(0, _INITIAL_CAPACITY))
        self.buffers = [self._allocate(_INITIAL_CAPACITY) for _ in range(2 * spec.layer_count)]

    @property
    def capacity(self) -> int:
        return int(self.buffers[0].shape[2])

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers)

    def reserve(self, count: int) -> bool:
        """Make room for `count` more positions; True if the buffers were replaced by larger ones."""
        if self.spec.window is not None:
            # The new positions themselves are the nearest to roll back over.
            keep = self.spec.window - 1 + max(self._rollback - count, 0)
            if self.length > keep and self.length + count > keep + max(count, self._slack):
                self._drop(self.length - keep)
        needed = self.length + count
        if needed <= self.capacity:
            return False
        enough = None if self.spec.window is None else self.spec.window - 1 + self._rollback + self._slack
        self._grow(max(needed, min(2 * self.capacity, enough or 2 * self.capacity)))
        return True

    def _drop(self, count: int) -> None:
        """Forget the oldest positions. Attention takes time for every slot that is filled, seen or not."""
        for buffer in self.buffers:
            buffer[:, :, : self.length - count] = buffer[:, :, count : self.length]
        self.first, self.length = self.first + count, self.length - count
        self._rotate_from(self.first)

    def can_rewind(self, position: int) -> bool:
        """Whether everything a window reaches back to from `position` is still here."""
        if self.first == 0:
            return True
        assert self.spec.window is not None
        return position - self.first >= self.spec.window - 1

    def rewind(self, position: int) -> None:
        self.length = position - self.first

    def clear(self) -> None:
        self.first = self.length = 0
        self._rotate_from(0)

    def copy_from(self, other: "KeyValueCache") -> None:
        self.first, self.length = other.first, other.length
        self.cosines, self.sines = other.cosines.copy(), other.sines.copy()
        self.buffers = [buffer.copy() for buffer in other.buffers]

    def _rotate_from(self, first: int) -> None:
        """Slots now hold the positions from `first` on; in place, as the tables are bound."""
        self.cosines[:], self.sines[:] = self._rotations(first, len(self.cosines))

    def _rotations(self, first: int, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Cosines and sines [count, head_dim / 2] of positions from `first` on; float32 as `BltRotaryEmbedding`."""
        positions = np.arange(first, first + count, dtype=np.float32)
        angles = np.zeros((count, self.spec.head_dim // 2), np.float32)  # what pads a head is not turned
        angles[:, : len(self._frequencies)] = positions[:, None] * self._frequencies
        return np.cos(angles), np.sin(angles)

    def _placed(self, tables: tuple[NDArray[np.float32], NDArray[np.float32]]) -> tuple[Array, Array]:
        """In the cache's type and memory."""
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
    """Rows [width] by absolute index; the newest are appended, old ones dropped, all kept ones contiguous."""

    def __init__(self, width: int, dtype: DTypeLike = np.float32, memory: DeviceMemory | None = None) -> None:
        """In `memory`, or on the host."""
        self._memory = memory
        self._rows: Array = empty((_INITIAL_CAPACITY, width), dtype, memory)
        self.first = 0  # absolute index of the oldest row kept
        self.end = 0  # absolute index after the newest

    def append(self, rows: Array, keep_from: int) -> None:
        """Add rows; those before `keep_from` may be forgotten."""
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
        """Rows start .. end (default: the newest), as a view that the next `append` may overwrite."""
        assert self.first <= start
        return self._rows[start - self.first : (self.end if end is None else end) - self.first]

    def rewind(self, end: int) -> None:
        self.end = end

    def restart(self, index: int) -> None:
        """Forget all rows; the next one is that of `index`."""
        self.first = self.end = index

    def clear(self) -> None:
        self.restart(0)

    def copy_from(self, other: "RowHistory") -> None:
        self.first, self.end, self._rows = other.first, other.end, other._rows.copy()


class IdHistory:
    """Every id fed, int64, behind the zeros that n-grams at the start of a sequence read."""

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
        """Ids start .. start + count, each behind the context its n-grams read: a view [count, context + 1]."""
        return self._windows[start : start + count]

    def copy_from(self, other: "IdHistory") -> None:
        self._keep(other._ids.copy())
