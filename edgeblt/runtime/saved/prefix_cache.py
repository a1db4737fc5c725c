"""States of recent texts, from which others that begin alike start, so that what they share is read once.

A state is kept where a prompt ended, where its text ended, where it parted from an earlier one, and before a prompt's
end at distances that double: of an earlier prompt, about as much is read again as it had after the part in common.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from threading import Lock
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgeblt.errors import EdgebltError
from edgeblt.runtime.buffers import Chunk
from edgeblt.runtime.opened_graphs import CHUNK_BYTES
from edgeblt.runtime.session import ROLLBACK_BYTES, Session
from edgeblt.runtime.state.snapshot import StateSnapshot

PREFIX_CACHE_BYTES = 256 << 20
LEAST_IDS = 64  # a shorter beginning is read as fast as a state is copied
LEAST_MARK = 2 * CHUNK_BYTES  # least position on the way to a prompt's end


@dataclass(frozen=True)
class PrefixCacheStatistics:
    """Contents and savings of a model's prefix cache.

    texts: number of texts that were begun.
    hits: number of those that started from a kept state.
    ids_read: ids that these texts began with, in all.
    ids_saved: ids among them that were not read again.
    states: number of states kept.
    nbytes: bytes they take; memory that several share counts once.
    limit: most bytes they may take; 0 keeps none.
    """

    texts: int
    hits: int
    ids_read: int
    ids_saved: int
    states: int
    nbytes: int
    limit: int


@dataclass(frozen=True)
class _Kept:
    key: object
    snapshot: StateSnapshot
    sizes: Mapping[int, int]  # bytes of each of its arrays, by identity


class KeptSequence(Protocol):
    """A sequence whose state can be kept: a session, or one of a batch."""

    @property
    def position(self) -> int: ...

    @property
    def ids(self) -> NDArray[np.int64]: ...

    def snapshot(self, earlier: StateSnapshot | None = None) -> StateSnapshot: ...


class PrefixCache:
    """Kept states of a model, the one used longest ago being dropped first. Any thread may use it.

    With `limit` bytes at most; `key` stands for whatever else a state depends on, such as the patching threshold. Where
    results may depend on how a text is cut into chunks (`exact` is false) states are kept, and texts started, only at
    multiples of `CHUNK_BYTES`, where the chunks are those of reading from the beginning. No text starts from fewer than
    `LEAST_IDS` ids.
    """

    def __init__(self, limit: int = PREFIX_CACHE_BYTES) -> None:
        self.limit = limit
        self._kept: list[_Kept] = []  # the one used last at the end
        self._users: Counter[int] = Counter()  # number of kept states that have an array, by its identity
        self._nbytes = 0  # bytes of all these arrays
        self._texts = self._hits = self._read = self._saved = 0
        self._lock = Lock()

    @property
    def statistics(self) -> PrefixCacheStatistics:
        """Contents of the cache, and what it has saved so far."""
        with self._lock:
            return PrefixCacheStatistics(
                self._texts, self._hits, self._read, self._saved, len(self._kept), self._nbytes, self.limit
            )

    def __repr__(self) -> str:
        found = self.statistics
        return (
            f"<edgeblt.PrefixCache: {found.hits} of {found.texts} texts, {found.states} states, {found.nbytes} bytes>"
        )

    def clear(self) -> None:
        """Drop all states; the counts stay."""
        with self._lock:
            self._kept.clear()
            self._users.clear()
            self._nbytes = 0

    def begin(
        self, ids: NDArray[np.int64], new_session: Callable[[], Session], key: object, exact: Callable[[], bool]
    ) -> "PromptReader":
        """A reader of a new text's `ids`, BOS first, that starts as far on as a kept state allows.

        `exact` is called only where a state may be started from or kept.
        """
        session = new_session()
        if not self.limit:
            return PromptReader(session, ids)
        is_exact = len(ids) >= LEAST_IDS and exact()
        found, start, common = self.find(ids, key, is_exact)
        if found:
            try:
                session.start_from(found)
                session.rollback(start)
            except (EdgebltError, MemoryError):  # there is no room for both; all is read instead
                self.clear()
                session, start = new_session(), 0
        self.count(len(ids), start)
        marks = [mark - start for mark in kept_positions(len(ids), start, common, is_exact)]

        def keep(least: int) -> None:
            if session.position >= LEAST_IDS:
                self.keep(session, key, exact(), least)

        return PromptReader(session, ids[start:], marks, keep)

    def count(self, read: int, saved: int) -> None:
        """Count a text that begins with `read` ids, of which `saved` are not read again."""
        with self._lock:
            self._texts, self._hits = self._texts + 1, self._hits + bool(saved)
            self._read, self._saved = self._read + read, self._saved + saved

    def find(self, ids: NDArray[np.int64], key: object, exact: bool) -> tuple[StateSnapshot | None, int, int]:
        """The state to start `ids` from, the position to roll it back to, and how many ids some text has in common.

        At least one id is left to read: what follows it is not kept.
        """
        best: _Kept | None = None
        best_start = common = 0
        with self._lock:
            for kept in self._kept:
                if kept.key != key:
                    continue
                shared = min(_common(kept.snapshot.ids, ids), len(ids) - 1)
                start, common = min(kept.snapshot.position, shared), max(common, shared)
                is_reached = kept.snapshot.position - start <= (ROLLBACK_BYTES if exact else 0)
                if is_reached and start >= LEAST_IDS and start > best_start:
                    best, best_start = kept, start
            if best:
                self._kept.remove(best)
                self._kept.append(best)
        return best.snapshot if best else None, best_start, common

    def keep(self, sequence: KeptSequence, key: object, exact: bool, least: int = 1) -> None:
        """Keep the state of a sequence, as far as there is room, if none is kept of `least` ids less or fewer."""
        position = sequence.position
        if not self.limit or position < LEAST_IDS or not (exact or position % CHUNK_BYTES == 0):
            return
        ids = sequence.ids
        with self._lock:
            earlier = [
                kept.snapshot
                for kept in self._kept
                if kept.key == key and _common(kept.snapshot.ids, ids) == kept.snapshot.position
            ]
        nearest = max(earlier, key=lambda snapshot: snapshot.position, default=None)
        if nearest is None or nearest.position + least <= position:
            try:
                snapshot = sequence.snapshot(nearest)
                self._add(_Kept(key, snapshot, {id(array): array.nbytes for array in snapshot.arrays()}))
            except (EdgebltError, MemoryError):  # there is no room for copies; the text itself goes on without
                self.clear()

    def _add(self, new: _Kept) -> None:
        with self._lock:
            if sum(new.sizes.values()) > self.limit:
                return
            self._kept.append(new)
            self._nbytes += sum(size for array, size in new.sizes.items() if not self._users[array])
            self._users.update(new.sizes.keys())
            while self._nbytes > self.limit:
                self._drop_oldest()

    def _drop_oldest(self) -> None:
        oldest = self._kept.pop(0)
        self._users.subtract(oldest.sizes.keys())
        for array, size in oldest.sizes.items():
            if not self._users[array]:
                del self._users[array]
                self._nbytes -= size


class PromptReader:
    """Feeds a session the ids that a text begins with."""

    def __init__(
        self,
        session: Session,
        ids: NDArray[np.int64],
        marks: "list[int] | tuple[int, ...]" = (),
        keep: Callable[[int], None] | None = None,
    ) -> None:
        """`keep` is called where as many of the ids are fed as `marks`, in ascending order, say; it gets the number of
        ids by which a state must be further on than those kept before."""
        self.session = session
        self._ids, self._marks, self._keep = ids, marks, keep

    def run(self) -> Iterator[Chunk]:
        """Feed the ids, as `Session.run` does."""
        cuts = sorted({0, *self._marks, len(self._ids)})
        for start, end in pairwise(cuts):
            yield from self.session.run(self._ids[start:end])
            if self._keep and end in self._marks:
                self._keep(1)

    def end(self) -> None:
        """Keep the state at the end of the text that followed."""
        if self._keep:
            self._keep(LEAST_IDS)


def _common(kept: NDArray[np.int32], ids: NDArray[np.int64]) -> int:
    """Number of ids with which both begin."""
    count = min(len(kept), len(ids))
    different = kept[:count] != ids[:count]
    first = int(different.argmax()) if count else 0
    return first if count and different[first] else count


def kept_positions(count: int, start: int, common: int, exact: bool) -> list[int]:
    """Positions, ascending, after which the state is kept while `count` ids are read from `start` on."""
    marks, distance = {count if exact else count - count % CHUNK_BYTES}, CHUNK_BYTES
    while count - distance >= LEAST_MARK:
        marks.add((count - distance) // CHUNK_BYTES * CHUNK_BYTES)
        distance *= 2
    if common - start >= LEAST_IDS:
        marks.add(common if exact else common - common % CHUNK_BYTES)
    return sorted(mark for mark in marks if mark >= LEAST_IDS and mark > start)
