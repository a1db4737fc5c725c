"""Steps at once: one run of each stage on the rows of several sequences, at different positions.

Products see all rows as one matrix; attention finds each row's sequence by `places` and `pages`
(`edgeblt.bundle.contract.CacheSpec`). A row has the same bits in any company, so each sequence gets what it gets alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgeblt.bundle.architectures import ByteModelConfig
from edgeblt.bundle.contract import StageName
from edgeblt.errors import EdgebltError
from edgeblt.runtime.batch.pool import CachePool, PagedCache, pooled
from edgeblt.runtime.batch.rows import StepRows, StepRunner
from edgeblt.runtime.batch.stepper import BatchSequence, StepPart, StepResult, expected_patches, room
from edgeblt.runtime.buffers import Chunk
from edgeblt.runtime.opened_graphs import OpenedGraphs
from edgeblt.runtime.run_errors import EnoughMemory
from edgeblt.runtime.session import ROLLBACK_BYTES
from edgeblt.runtime.stage_work import StageWork
from edgeblt.runtime.state.cache import KeyValueCache
from edgeblt.runtime.state.sequence import SequenceState
from edgeblt.runtime.state.snapshot import StateSnapshot


class RaggedSequence:
    """A sequence whose caches lie in the stepper's pools."""

    def __init__(self, stepper: "RaggedStepper", state: SequenceState, slot: int) -> None:
        self._stepper, self.state, self.slot = stepper, state, slot
        self.unsettled: int | None = None  # the position to return to after a step that was cut short

    @property
    def position(self) -> int:
        return self.state.position if self.unsettled is None else self.unsettled

    @property
    def ids(self) -> NDArray[np.int64]:
        return self.state.ids.ids(self.position)

    def rollback(self, position: int) -> None:
        if not 0 <= position <= self.position:
            raise EdgebltError(f"cannot roll back to position {position}; this sequence is at {self.position}")
        if self.unsettled is None and self.state.can_rewind(position):
            self.state.rewind(position)
        elif self.unsettled is not None or position != self.state.position:
            self.unsettled = position
            self._stepper.settle(self)

    def fork(self) -> BatchSequence | None:
        return self._stepper.fork(self)

    def snapshot(self, earlier: StateSnapshot | None = None) -> StateSnapshot:
        self._stepper.make_copyable(self)
        return self.state.snapshot(earlier)

    def close(self) -> None:
        self._stepper.remove(self)


class RaggedStepper(ABC):
    """Runs steps at once, in graphs for the cpu with the native library's kernels.

    A subclass, one for each kind of model, sets `_runner` and makes states.
    """

    is_batched = True
    _runner: StepRunner

    def __init__(
        self, config: ByteModelConfig, graphs: OpenedGraphs, threshold: float | None, most_sequences: int, memory: int
    ) -> None:
        """Start without sequences; `memory`, in bytes, bounds their states; `threshold` as sessions take it."""
        self._graphs, self._memory = graphs, memory
        self._pools: dict[StageName, CachePool] = {
            name: CachePool(contract.cache, most_sequences, memory, ROLLBACK_BYTES)
            for name, contract in graphs.contracts.items()
            if contract.cache
        }
        self._free_slots = list(range(most_sequences - 1, -1, -1))
        self._sequences: list[RaggedSequence] = []

    @abstractmethod
    def _new_state(self, slot: int, caches: Mapping[StageName, KeyValueCache]) -> SequenceState:
        """An empty state with these caches; `slot`: its place in what all sequences share."""

    @property
    def state_bytes(self) -> int:
        forgotten = sum(
            cache.forgotten_bytes for sequence in self._sequences for cache in sequence.state.caches.values()
        )
        return sum(pool.used_bytes for pool in self._pools.values()) + forgotten

    @property
    def work(self) -> dict[StageName, StageWork]:
        """Runs, positions and seconds of each stage so far, as a copy; bytes of keys and values are not counted."""
        return {name: replace(work) for name, work in self._runner.work.items()}

    def open(self, expected: int, start: StateSnapshot | None = None) -> BatchSequence | None:
        patches = max(expected_patches(expected), start.patch_count if start else 0)
        counts = {name: patches if name == "global" else expected for name in self._pools}
        if not self._has_room(sum(pool.bytes_of(counts[name]) for name, pool in self._pools.items())):
            return None
        sequence = self._add()
        if start:
            try:
                sequence.state.load(start)
            except EdgebltError:
                self.remove(sequence)
                raise
        return sequence

    def fork(self, sequence: RaggedSequence) -> BatchSequence | None:
        """A copy of a sequence, which shares the pages of its caches without a window; None without room for it."""
        self.settle(sequence)
        if not self._has_room(sum(pool.bytes_of(0) + pool.page_bytes for pool in self._pools.values())):
            return None
        other = self._add()
        other.state.copy_from(sequence.state)
        return other

    def _has_room(self, size: int) -> bool:
        return bool(self._free_slots) and (not self._sequences or self.state_bytes + size <= self._memory)

    def _add(self) -> RaggedSequence:
        slot = self._free_slots.pop()
        caches = {name: pool.new_cache() for name, pool in self._pools.items()}
        sequence = RaggedSequence(self, self._new_state(slot, caches), slot)
        self._sequences.append(sequence)
        return sequence

    def remove(self, sequence: RaggedSequence) -> None:
        """Give the memory of a sequence back. Nothing happens a second time."""
        if sequence not in self._sequences:
            return
        self._sequences.remove(sequence)
        self._free_slots.append(sequence.slot)
        for cache in sequence.state.caches.values():
            pooled(cache).close()

    def fits(self, parts: Sequence[StepPart]) -> bool:
        growth = 0
        for name, pool in self._pools.items():
            missing = 0
            for sequence, ids in parts:
                cache = _ragged(sequence).state.caches[name]
                missing += cache.missing(len(ids)) if isinstance(cache, PagedCache) else 0
            if missing > pool.free_count:
                return False
            growth += missing * pool.page_bytes
        return self.state_bytes + growth <= self._memory

    def run(self, parts: Sequence[StepPart]) -> list[StepResult]:
        if not parts:
            return []
        try:
            return [*self._run(parts)]
        except EdgebltError as error:
            if len(parts) == 1:
                return [error]
        # One by one, to find whose error it is.
        return [_copied(result) for part in parts for result in self.run([part])]

    def _run(self, parts: Sequence[StepPart]) -> list[Chunk]:
        sequences = [_ragged(sequence) for sequence, _ in parts]
        for sequence in sequences:
            self.settle(sequence)
        self._graphs.check()
        with EnoughMemory("to run a step"):
            for sequence in sequences:
                sequence.unsettled = sequence.state.position
            chunks = self._runner.run(StepRows([sequence.state for sequence in sequences], [ids for _, ids in parts],
                                           [sequence.slot for sequence in sequences]))  # fmt: skip
            for sequence in sequences:
                sequence.unsettled = None
            return chunks

    def make_copyable(self, sequence: RaggedSequence) -> None:
        """Let a sequence's state hold all its ids."""
        self.settle(sequence)

    def settle(self, sequence: RaggedSequence) -> None:
        """Read a sequence's ids again up to where it was before what was cut short. Nothing where nothing was."""
        if sequence.unsettled is None:
            return
        ids, position = sequence.ids, sequence.unsettled
        sequence.state.clear()
        while sequence.state.position < position:
            start = sequence.state.position
            some = ids[start : min(start + room(start), position)]
            self._runner.run(StepRows([sequence.state], [some], [sequence.slot]))
        sequence.unsettled = None


def _ragged(sequence: BatchSequence) -> RaggedSequence:
    assert isinstance(sequence, RaggedSequence)
    return sequence


def _copied(result: StepResult) -> StepResult:
    if isinstance(result, EdgebltError):
        return result
    return Chunk(result.position, result.logits.copy(), result.entropies.copy(), result.patch_starts.copy())
