"""Key-value caches bounded by their attention window."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edgeblt.bundle.contract import CacheSpec
from edgeblt.runtime.state.device_array import Array, DeviceMemory, empty, zeros
from edgeblt.runtime.state.snapshot import CacheSnapshot

PIECE_BYTES = 128  # positions between two shifts of a windowed cache; no run of a graph crosses one
DEVICE_SLACK = 1024  # on a GPU: slots filled beyond the necessary ones before a shift, which takes long there
_INITIAL_CAPACITY = 128
_SPARE = 1  # slots behind the filled ones that a graph may write to: portable bodies attend with one row more


def pieces(position: int, count: int) -> list[slice]:
    """Slices of `count` ids at `position`, cut at multiples of `PIECE_BYTES`."""
    cuts = [0, *range(PIECE_BYTES - position % PIECE_BYTES, count, PIECE_BYTES), count]
    return [slice(start, end) for start, end in pairwise(cuts)] if count else []


def capacity_of_window(spec: CacheSpec) -> int | None:
    """Most slots that a cache on the host needs; None where attention has no window."""
    return None if spec.window is None else spec.window - 1 + PIECE_BYTES + _SPARE


def rotation_frequencies(spec: CacheSpec) -> NDArray[np.float32]:
    """Angles from one position to the next of each pair of elements that RoPE rotates, float32 [rotary_dim / 2].

    Powers are rounded to float32 once, as torch's are, and then inverted: numpy's own float32 powers are off by a step
    or two on some processors, which the position multiplies.
    """
    exponents = np.arange(0, spec.rotary_dim, 2, dtype=np.float32) / np.float32(spec.rotary_dim)
    powers = np.float64(np.float32(spec.rope_theta)) ** exponents.astype(np.float64)
    frequencies: NDArray[np.float32] = np.float32(1) / powers.astype(np.float32)
    return frequencies


def rope_angles(frequencies: NDArray[np.float32], positions: NDArray[np.int64], spec: CacheSpec) -> NDArray[np.float32]:
    """RoPE angles [T, head_dim / 2] of these positions, float32 as in `BltRotaryEmbedding`."""
    angles = np.zeros((len(positions), spec.head_dim // 2), np.float32)  # padding of a head is not rotated
    angles[:, : len(frequencies)] = positions.astype(np.float32)[:, None] * frequencies
    return angles


class KeyValueCache:
    """Key and value buffers [1, kv heads, capacity, slot width] of one stage, one of each per layer.

    Slot i holds position `first + i`. A cache without a window doubles its capacity when full. A windowed one is
    bounded: it shifts its content to the front where the text crosses a multiple of `PIECE_BYTES`, and back where it is
    rolled back across one. So the slots that a position attends to follow from the position alone, however the text
    was fed: ONNX Runtime sums slot by slot, and another order would round differently. On a GPU shifts are rare, and
    depend on how the text was fed.
    """

    _ready = 0  # so many slots can be filled without another `_reserve`

    def __init__(self, spec: CacheSpec, rollback: int, memory: DeviceMemory | None = None) -> None:
        """Start empty, in `memory`, None being the host's."""
        self.spec = spec
        self._memory = memory
        self.first = 0
        self.length = 0
        self.replacements = 0  # how often other buffers took the place of these
        self._rollback = rollback
        self._slot_bytes = spec.slot_bytes
        self._forgotten: list[Array] = []  # on the host: the slots of every buffer that the last shift dropped
        self._frequencies = rotation_frequencies(spec)
        self.cosines, self.sines = self._placed(self._rotations(0, _INITIAL_CAPACITY))
        self.buffers = [self._allocate(_INITIAL_CAPACITY) for _ in range(2 * spec.layer_count)]

    @property
    def capacity(self) -> int:
        return int(self.buffers[0].shape[2])

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers) + self.forgotten_bytes

    @property
    def forgotten_bytes(self) -> int:
        """Bytes kept outside the buffers, for taking the last shift back."""
        return sum(buffer.nbytes for buffer in self._forgotten)

    def read_bytes(self, count: int) -> int:
        """Bytes of keys and values in the windows of the last `count` positions."""
        seen = self.length if self.spec.window is None else min(self.length, self.spec.window - 1 + count)
        return seen * self._slot_bytes

    def _reserve(self, count: int) -> None:
        """Make room for `count` more positions, in larger buffers where these are too small."""
        keep = self._kept(count)
        if self.length > keep:
            self._drop(self.length - keep)
        needed = self.length + count + _SPARE
        if needed > self.capacity:
            self._grow(max(needed, min(2 * self.capacity, self._enough or 2 * self.capacity)))
        if self._memory is None:
            self._ready = self.capacity - _SPARE
            if self.spec.window is not None:  # up to the next shift
                position = self.first + self.length
                self._ready = min(self._ready, position - position % PIECE_BYTES + PIECE_BYTES - self.first)

    def growth(self, count: int) -> int:
        """Bytes by which room for `count` more positions makes the buffers larger."""
        needed = self.length + count + _SPARE
        if needed <= self.capacity or (self._enough is not None and self.capacity >= self._enough):
            return 0
        larger = max(needed, min(2 * self.capacity, self._enough or 2 * self.capacity))
        return (larger - self.capacity) * sum(buffer.nbytes for buffer in self.buffers) // self.capacity

    def advance(self, count: int) -> int:
        """Make room for `count` more positions, which a run is about to fill; returns the filled slots with them."""
        if self.length + count > self._ready:
            self._reserve(count)
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
        self.length, self._ready = position - self.first, 0

    def clear(self) -> None:
        self.first = self.length = self._ready = 0
        self._forgotten = []
        self._rotate_from(0)

    def copy_from(self, other: "KeyValueCache") -> None:
        self.first, self.length, self._forgotten = other.first, other.length, other._forgotten
        self.cosines, self.sines = other.cosines.copy(), other.sines.copy()
        self.buffers = [buffer.copy() for buffer in other.buffers]
        self._ready = 0
        self.replacements += 1

    def snapshot(self, earlier: CacheSnapshot | None = None) -> CacheSnapshot:
        """A copy of the filled slots.

        earlier: one of the same text after fewer positions, whose arrays are shared where this cache has no window.
        """
        shared = earlier.segments if earlier and self.spec.window is None else ()
        start = earlier.length if earlier and self.spec.window is None else 0
        newest = tuple(buffer[:, :, start : self.length].copy() for buffer in self.buffers)
        segments = (*shared, newest) if self.length > start else shared
        return CacheSnapshot(self.first, self.length, segments, tuple(self._forgotten))

    def can_hold(self, first: int, length: int, forgotten: int, end: int) -> bool:
        """Whether this cache can hold, after `end` positions, the last `length` from `first` on, and can keep as many
        forgotten slots before them."""
        if first < 0 or length < 0 or first + length != end:
            return False
        if self.spec.window is None:
            return first == forgotten == 0
        if self._memory is None:
            possible = self._first_slot(end), self._first_slot(max(end - 1, 0))
            return first in possible and forgotten in (0, min(first, PIECE_BYTES))
        most = self.spec.window - 1 + self._rollback + max(DEVICE_SLACK, PIECE_BYTES)
        return forgotten == 0 and first <= max(end - (self.spec.window - 1), 0) and length <= most

    def load(self, snapshot: CacheSnapshot) -> None:
        """Become what the snapshot is a copy of."""
        self.clear()
        most = self._enough
        least = snapshot.length + _SPARE
        if snapshot.forgotten and most is not None:  # they come back where the text is rolled back across the shift
            least = max(least, most)
        if least > self.capacity:
            more = snapshot.length + PIECE_BYTES + _SPARE
            self._grow(max(least, more if most is None else min(more, most)))
        end = 0
        for segment in snapshot.segments:
            start, end = end, end + segment[0].shape[2]
            for buffer, slots in zip(self.buffers, segment, strict=True):
                buffer[:, :, start:end] = slots
        self.first, self.length, self._forgotten = snapshot.first, snapshot.length, list(snapshot.forgotten)
        self._rotate_from(self.first)

    def _rotate_from(self, first: int) -> None:
        """Update the RoPE tables, in place as they are bound: slot 0 now holds position `first`."""
        self.cosines[:], self.sines[:] = self._rotations(first, len(self.cosines))

    def _rotations(self, first: int, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """RoPE cosines and sines [count, head_dim / 2] from position `first` on, float32 as in `BltRotaryEmbedding`."""
        angles = rope_angles(self._frequencies, np.arange(first, first + count), self.spec)
        return np.cos(angles), np.sin(angles)

    def _placed(self, tables: tuple[NDArray[np.float32], NDArray[np.float32]]) -> tuple[Array, Array]:
        """The tables in the cache's dtype and memory."""
        if self._memory is None and self.spec.angle_dtype == "float32":
            return tables
        placed = [empty(table.shape, self.spec.angle_dtype, self._memory) for table in tables]
        for array, table in zip(placed, tables, strict=True):
            array[:] = table
        return placed[0], placed[1]

    def _grow(self, capacity: int) -> None:
        larger = [self._allocate(capacity) for _ in self.buffers]
        for new, old in zip(larger, self.buffers, strict=True):
            new[:, :, : self.length] = old[:, :, : self.length]
        tables = self._placed(self._rotations(self.first, capacity))
        self.buffers, (self.cosines, self.sines) = larger, tables  # at once: an interruption leaves one size
        self.replacements += 1

    def _allocate(self, capacity: int) -> Array:
        shape = (1, self.spec.kv_head_count, capacity, self.spec.slot_width)
        return zeros(shape, self.spec.dtype, self._memory)  # type: ignore[no-any-return]
