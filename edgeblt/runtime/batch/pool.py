"""Memory that the caches of several sequences share: pages of slots, given to sequences and taken back."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgeblt.bundle.contract import CacheSpec
from edgeblt.errors import EdgebltError
from edgeblt.runtime.state.cache import KeyValueCache, capacity_of_window, rope_angles, rotation_frequencies
from edgeblt.runtime.state.device_array import Array
from edgeblt.runtime.state.snapshot import CacheSnapshot

PAGE_SLOTS = 64  # a page of a cache without a window: a tile of attention lies in one page


@dataclass(frozen=True)
class Rope:
    """RoPE of a stage; stages whose heads are alike have equal ones."""

    head_dim: int
    rotary_dim: int
    theta: float
    _spec: CacheSpec = field(compare=False, repr=False)
    _frequencies: NDArray[np.float32] = field(compare=False, repr=False)

    @classmethod
    def of(cls, spec: CacheSpec) -> "Rope":
        return cls(spec.head_dim, spec.rotary_dim, spec.rope_theta, spec, rotation_frequencies(spec))

    def rotations(self, positions: NDArray[np.int64], cosines: NDArray[np.float32], sines: NDArray[np.float32]) -> None:
        """Compute the factors [T, head_dim / 2] of these positions, as `KeyValueCache` has them by slot."""
        angles = rope_angles(self._frequencies, positions, self._spec)
        np.cos(angles, out=cosines)
        np.sin(angles, out=sines)


class CachePool:
    """The cache of one stage for all sequences: per layer key and value buffers [pages, kv heads, slots, slot width].

    A sequence has one page if the stage's attention has a window, which then holds all that a sequence needs, else
    pages of `PAGE_SLOTS` slots, as many as its text fills. Memory is taken from the system when a page is first used.
    """

    def __init__(self, spec: CacheSpec, most_sequences: int, memory: int, rollback: int) -> None:
        """Room for so many sequences, or where attention has no window for pages in so many bytes of memory."""
        self.spec = spec
        self.replacements = 0  # the buffers are never replaced
        window = capacity_of_window(spec)
        self.is_windowed = window is not None
        self.page_slots = window or PAGE_SLOTS
        page_count = most_sequences if self.is_windowed else memory // self.page_bytes + 1
        shape = (page_count, spec.kv_head_count, self.page_slots, spec.slot_width)
        self.buffers: list[Array] = [np.zeros(shape, spec.dtype) for _ in range(2 * spec.layer_count)]
        self.cosines: Array = np.zeros((0, spec.head_dim // 2), np.float32)  # steps bring their own
        self.sines: Array = self.cosines
        self._free = list(range(page_count - 1, -1, -1))
        self._users = np.zeros(page_count, np.int64)  # sequences that have a page
        self.rope, self._rollback = Rope.of(spec), rollback

    @property
    def free_count(self) -> int:
        return len(self._free)

    def read_bytes(self, count: int) -> int:
        """0: what steps read is not counted."""
        return 0

    @property
    def page_bytes(self) -> int:
        return self.spec.slot_bytes * self.page_slots

    def take(self) -> int:
        """A free page, for one sequence."""
        if not self._free:
            raise EdgebltError("the memory allowed for texts in a batch is full; allow more, or use shorter texts")
        page = self._free.pop()
        self._users[page] = 1
        return page

    def share(self, pages: list[int]) -> None:
        """Let another sequence have these pages too."""
        self._users[pages] += 1

    def is_shared(self, page: int) -> bool:
        return bool(self._users[page] > 1)

    def give_back(self, pages: list[int]) -> None:
        """End a sequence's use of pages; the newest is free first."""
        self._users[pages] -= 1
        self._free += [page for page in reversed(pages) if self._users[page] == 0]

    def copy(self, source: int, target: int) -> None:
        for buffer in self.buffers:
            buffer[target : target + 1] = buffer[source : source + 1]

    @property
    def used_bytes(self) -> int:
        return (len(self._users) - len(self._free)) * self.page_bytes

    def bytes_of(self, count: int) -> int:
        """Bytes that the cache of a sequence takes after so many positions."""
        return self.page_bytes * (1 if self.is_windowed else -(-count // self.page_slots))

    def new_cache(self) -> "WindowPage | PagedCache":
        """The cache of a new sequence."""
        return WindowPage(self, self._rollback) if self.is_windowed else PagedCache(self)


class WindowPage(KeyValueCache):
    """One sequence's cache where attention has a window: a page of a pool, in which it moves as any such cache."""

    def __init__(self, pool: CachePool, rollback: int) -> None:
        self.spec, self._memory, self._rollback, self._pool = pool.spec, None, rollback, pool
        self.first = self.length = self.replacements = 0
        self._forgotten = []
        self.cosines, self.sines = pool.cosines, pool.sines
        self.pages = [pool.take()]
        self.buffers = [buffer[self.pages[0] : self.pages[0] + 1] for buffer in pool.buffers]

    def growth(self, count: int) -> int:
        return 0

    def copy_from(self, other: KeyValueCache) -> None:
        self.first, self.length, self._forgotten, self._ready = other.first, other.length, other._forgotten, 0
        for buffer, its in zip(self.buffers, other.buffers, strict=True):
            buffer[:, :, : self.length] = its[:, :, : self.length]

    def close(self) -> None:
        self._pool.give_back(self.pages)
        self.pages = []

    def _rotate_from(self, first: int) -> None:
        """Nothing: each step brings the angles of its rows."""


class PagedCache(KeyValueCache):
    """One sequence's cache without a window: slot i, which holds position i, is in page i // `PAGE_SLOTS`.

    Copies share pages; whichever writes to one first gets its own.
    """

    def __init__(self, pool: CachePool) -> None:
        self.spec, self._pool = pool.spec, pool
        self.first = self.length = self.replacements = 0
        self.buffers, self._forgotten = [], []  # all keys and values lie in the pool's
        self.pages: list[int] = []

    @property
    def nbytes(self) -> int:
        return len(self.pages) * self._pool.page_bytes

    @property
    def _is_open_page_shared(self) -> bool:
        """Whether another sequence has the page that the next position is written to."""
        place = self.length // self._pool.page_slots
        return place < len(self.pages) and self._pool.is_shared(self.pages[place])

    def missing(self, count: int) -> int:
        """Number of pages to take before `count` more positions are written."""
        more = -(-(self.length + count) // self._pool.page_slots) - len(self.pages)
        return max(more, 0) + int(count > 0 and self._is_open_page_shared)

    def growth(self, count: int) -> int:
        return self.missing(count) * self._pool.page_bytes

    def advance(self, count: int) -> int:
        slots = self._pool.page_slots
        if count and self._is_open_page_shared:
            place, own = self.length // slots, self._pool.take()
            self._pool.copy(self.pages[place], own)
            self._pool.give_back([self.pages[place]])
            self.pages[place] = own
        self.length += count
        while len(self.pages) * slots < self.length:
            self.pages.append(self._pool.take())
        return self.length

    def can_rewind(self, position: int) -> bool:
        return True

    def rewind(self, position: int) -> None:
        self.length = position
        needed = -(-position // self._pool.page_slots)
        self._pool.give_back(self.pages[needed:])
        del self.pages[needed:]

    def clear(self) -> None:
        self.rewind(0)

    def copy_from(self, other: KeyValueCache) -> None:
        assert isinstance(other, PagedCache)
        self.clear()
        self.length, self.pages = other.length, other.pages.copy()
        self._pool.share(self.pages)

    def snapshot(self, earlier: CacheSnapshot | None = None) -> CacheSnapshot:
        start = earlier.length if earlier else 0
        segments = earlier.segments if earlier else ()
        if self.length > start:
            segments = (*segments, tuple(self._slots(buffer, start) for buffer in self._pool.buffers))
        return CacheSnapshot(0, self.length, segments)

    def _slots(self, buffer: Array, start: int) -> Array:
        """A copy of the slots from `start` on, [1, kv heads, slots, slot width]."""
        first = start // self._pool.page_slots
        whole = np.concatenate([buffer[page : page + 1] for page in self.pages[first:]], axis=2)
        begin = first * self._pool.page_slots
        return np.array(whole[:, :, start - begin : self.length - begin])

    def load(self, snapshot: CacheSnapshot) -> None:
        self.clear()
        self.advance(snapshot.length)
        end, slots = 0, self._pool.page_slots
        for segment in snapshot.segments:
            start, end = end, end + segment[0].shape[2]
            for place in range(start // slots, -(-end // slots)):
                first, last = max(start, place * slots), min(end, (place + 1) * slots)
                page, own = self.pages[place], slice(first - place * slots, last - place * slots)
                for buffer, saved in zip(self._pool.buffers, segment, strict=True):
                    buffer[page : page + 1, :, own] = saved[:, :, first - start : last - start]

    def close(self) -> None:
        self.clear()


def pooled(cache: KeyValueCache) -> WindowPage | PagedCache:
    """A cache that is known to lie in a pool."""
    assert isinstance(cache, WindowPage | PagedCache)
    return cache
