"""Common steps of one-stage transformers over bytes: one run of the stage on the rows of all sequences."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edgeblt.bundle.architectures import ByteModelConfig
from edgeblt.bundle.contract import FURTHER, StageName
from edgeblt.runtime.batch.arrays import Places, page_table
from edgeblt.runtime.batch.pool import CachePool, pooled
from edgeblt.runtime.batch.ragged import RaggedStepper
from edgeblt.runtime.batch.rows import StepRows
from edgeblt.runtime.buffers import Chunk
from edgeblt.runtime.causal.state import CausalState, context_of
from edgeblt.runtime.opened_graphs import OpenedGraphs
from edgeblt.runtime.stage import KeptArrays, StageRunner
from edgeblt.runtime.stage_work import StageWork
from edgeblt.runtime.state.cache import KeyValueCache
from edgeblt.runtime.state.sequence import SequenceState


class CausalRows(Places):
    """Arrays for T rows: their windows of ids, their places in the cache, and their results."""

    def __init__(self, config: ByteModelConfig, pools: Mapping[StageName, CachePool], context: int, count: int) -> None:
        super().__init__(pools, count)
        vocab, further = config.vocab_size, config.further_count
        self.windows = np.zeros((count, context + 1), np.int64)
        self.logits = np.empty((count, vocab), np.float32)
        self.outputs: dict[str, NDArray[np.float32]] = {"logits": self.logits}
        if further:
            self.outputs[FURTHER] = np.empty((count, further * vocab), np.float32)


class CausalRunner:
    """Runs the stage on the rows of a step, over caches in a pool."""

    def __init__(
        self, config: ByteModelConfig, graphs: OpenedGraphs, pools: Mapping[StageName, CachePool], context: int
    ) -> None:
        ((self._stage, pool),) = pools.items()
        self._runner = StageRunner(self._stage, graphs[self._stage], pool)
        self._rows = KeptArrays(lambda count: CausalRows(config, pools, context, count))

    @property
    def work(self) -> dict[StageName, StageWork]:
        """Work of the stage so far."""
        return {self._stage: self._runner.work}

    def run(self, rows: StepRows) -> list[Chunk]:
        """Results of each sequence's rows, whose states then hold them."""
        arrays, caches = self._rows[rows.count], [pooled(state.caches[self._stage]) for state in rows.states]
        for state, own, ids, position in zip(rows.states, rows.own, rows.ids, rows.positions, strict=True):
            state.ids.store(position, ids)
            arrays.windows[own] = state.ids.windows(position, len(ids))
        for cache, count in zip(caches, rows.counts, strict=True):
            cache.advance(count)
        positions, places = rows.running(rows.positions), arrays.places[self._stage]
        places[:, 0], places[:, 1] = rows.owners, positions
        arrays.rotate(positions)
        inputs = {
            "windows": arrays.windows,
            **arrays.inputs(self._stage, page_table([cache.pages for cache in caches])),
        }
        self._runner.run(inputs, arrays.outputs, rows.count, rows.count)
        for state, count in zip(rows.states, rows.counts, strict=True):
            state.position += count
        return [
            Chunk(position, arrays.logits[own], np.zeros(count, np.float32), np.ones(count, np.bool_))
            for position, own, count in zip(rows.positions, rows.own, rows.counts, strict=True)
        ]


class CausalStepper(RaggedStepper):
    """Runs common steps of models whose sessions are `CausalSession`s."""

    def __init__(
        self, config: ByteModelConfig, graphs: OpenedGraphs, threshold: float | None, most_sequences: int, memory: int
    ) -> None:
        super().__init__(config, graphs, threshold, most_sequences, memory)
        (contract,) = graphs.contracts.values()
        self._context = context_of(contract)
        self._runner = CausalRunner(config, graphs, self._pools, self._context)

    def _new_state(self, slot: int, caches: Mapping[StageName, KeyValueCache]) -> SequenceState:
        return CausalState(caches, self._context)
