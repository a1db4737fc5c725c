"""Common steps of Byte Latent Transformers: the way of rows through the four stages.

Patcher, encoder and decoder run on all rows; the global stage on the patches that they complete, whichever sequences
these belong to.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeblt.bundle.config import ModelConfig
from edgeblt.bundle.contract import STAGES, STATE_WIDTH, StageName, cross_row_width
from edgeblt.runtime.batch.arrays import PatchArrays, RowArrays, SequenceArrays, page_table
from edgeblt.runtime.batch.pool import CachePool, pooled
from edgeblt.runtime.batch.ragged import RaggedStepper
from edgeblt.runtime.batch.rows import StepRows
from edgeblt.runtime.buffers import Chunk
from edgeblt.runtime.opened_graphs import OpenedGraphs
from edgeblt.runtime.session import ROLLBACK_BYTES
from edgeblt.runtime.stage import KeptArrays, StageRunner
from edgeblt.runtime.stage_work import StageWork
from edgeblt.runtime.state.cache import KeyValueCache
from edgeblt.runtime.state.sequence import SequenceState

_NO_POSITION = np.zeros(1, np.int64)
_NO_INDEX = np.zeros(0, np.int64)
_NO_STATE = np.zeros(STATE_WIDTH, np.float32)


@dataclass(frozen=True)
class Completed:
    """The patches that the rows complete, each sequence's one after the other.

    counts, firsts: number of patches of each sequence, and the first of them.
    total: number of all.
    """

    counts: list[int]
    firsts: list[int]
    total: int

    @classmethod
    def of(cls, rows: StepRows, arrays: RowArrays, carried_count: int) -> "Completed":
        """Patches completed where `arrays.found` says so, for decoders that have so many carried rows.

        Sets `patch_index` and `latent_index`, as the encoder and the decoder take them.
        """
        starts = arrays.found.patch_starts
        if not starts.any():
            arrays.patch_index.fill(0)
            arrays.latent_index[:] = rows.each(rows.slots)
            nothing = [0] * len(rows.states)
            return cls(nothing, nothing, 0)
        behind = np.cumsum(starts)  # patches of the step before the next byte
        ends = behind[[start + count - 1 for start, count in zip(rows.starts, rows.counts, strict=True)]].tolist()
        firsts = [0, *ends[:-1]]
        before: NDArray[np.int64] = behind - starts
        arrays.patch_index[:] = np.where(before < rows.each(ends), before, ends[-1])
        arrays.latent_index[:] = np.where(behind > rows.each(firsts), carried_count - 1 + behind, rows.each(rows.slots))
        return cls([end - first for first, end in zip(firsts, ends, strict=True)], firsts, ends[-1])


@dataclass(frozen=True)
class PatchedStep:
    """A step whose patches are known, and the arrays that its stages read and write."""

    rows: StepRows
    arrays: RowArrays
    sequences: SequenceArrays
    completed: Completed
    patches: PatchArrays

    @property
    def completing(self) -> list[tuple[SequenceState, int, int]]:
        """Sequences that complete patches, each with their number and the first of them."""
        return [
            each for each in zip(self.rows.states, self.completed.counts, self.completed.firsts, strict=True) if each[1]
        ]


class PatchedRunner:
    """Runs the stages on the rows of a step, over caches in pools."""

    def __init__(
        self,
        config: ModelConfig,
        graphs: OpenedGraphs,
        pools: Mapping[StageName, CachePool],
        carried_rows: NDArray[np.float32],
        threshold: float | None,
    ) -> None:
        self._config, self._carried_rows = config, carried_rows
        self._local = [name for name in pools if name != "global"]
        self._stages = {name: StageRunner(name, graphs[name], pools.get(name)) for name in STAGES}
        self._rows = KeptArrays(lambda count: RowArrays(config, pools, count))
        self._sequences = KeptArrays(lambda count: SequenceArrays(self._local, count))
        self._patches = KeptArrays(lambda count: PatchArrays(config, pools["global"], count))
        self._no_vectors = np.empty((0, config.encoder.hidden_size), np.float32)
        self._settings = {} if threshold is None else {"threshold": np.array([threshold], np.float32)}

    @property
    def work(self) -> dict[StageName, StageWork]:
        """Work of each stage so far."""
        return {name: stage.work for name, stage in self._stages.items()}

    def run(self, rows: StepRows) -> list[Chunk]:
        """Results of each sequence's rows, whose states then hold them."""
        arrays, sequences = self._rows[rows.count], self._sequences[len(rows.states)]
        for state, own, ids, position in zip(rows.states, rows.own, rows.ids, rows.positions, strict=True):
            state.ids.store(position, ids)
            arrays.windows[own] = state.ids.windows(position, len(ids))
        arrays.ids[:] = arrays.windows[:, -1]
        arrays.rotate(rows.running(rows.positions))
        self._patch(rows, arrays, sequences)
        completed = Completed.of(rows, arrays, len(self._carried_rows))
        step = PatchedStep(rows, arrays, sequences, completed, self._patches[completed.total])
        self._encode(step)
        found = arrays.found
        for state, own, count in zip(rows.states, rows.own, completed.counts, strict=True):
            state.append(arrays.byte_vectors[own], found.patch_starts[own], count)
        if completed.total:
            self._run_global(step)
        self._decode(step)
        return [
            Chunk(position, arrays.logits[own], found.entropies[own], found.patch_starts[own])
            for position, own in zip(rows.positions, rows.own, strict=True)
        ]

    def _places(self, stage: StageName, rows: StepRows, arrays: RowArrays, sequences: SequenceArrays) -> dict[str, Any]:
        """Inputs of a local stage that say where its rows go, for which the caches make room."""
        if stage not in self._local:
            return {}
        caches = [pooled(state.caches[stage]) for state in rows.states]
        slots = [cache.advance(count) - count for cache, count in zip(caches, rows.counts, strict=True)]
        places, pages = arrays.places[stage], sequences.pages[stage]
        places[:, 0], places[:, 1] = rows.owners, rows.running(slots)
        pages[:, 0] = [cache.pages[0] for cache in caches]
        return arrays.inputs(stage, pages)

    def _patch(self, rows: StepRows, arrays: RowArrays, sequences: SequenceArrays) -> None:
        """Set `arrays.found`."""
        found = arrays.found
        sequences.sequences[:, 0], sequences.sequences[:, 1] = rows.starts, rows.positions
        for before, state, position in zip(sequences.states, rows.states, rows.positions, strict=True):
            before[:] = state.patcher_states.rows(position - 1, position)[0] if position else 0
        inputs = {
            "ids": arrays.ids, "position": _NO_POSITION, "state": _NO_STATE, "sequences": sequences.sequences,
            "sequence_states": sequences.states, **self._settings, **self._places("patcher", rows, arrays, sequences),
        }  # fmt: skip
        outputs = {"entropies": found.entropies, "patch_starts": found.patch_starts, "states": found.states}
        if self._config.patcher:
            outputs["logits"] = found.logits
        self._stages["patcher"].run(inputs, outputs, rows.count, 0)
        for state, own, position in zip(rows.states, rows.own, rows.positions, strict=True):
            end = position + own.stop - own.start
            state.patcher_states.append(found.states[own], max(end - 2 * ROLLBACK_BYTES, 0) - 1)

    def _encode(self, step: PatchedStep) -> None:
        """Set the byte vectors of rows, and the vectors of patches."""
        arrays, patches = step.arrays, step.patches
        inputs = {
            "windows": arrays.windows, "patch_index": arrays.patch_index, "patches": patches.patches,
            "open_vectors": self._no_vectors, "open_index": _NO_INDEX,
            **self._places("encoder", step.rows, arrays, step.sequences),
        }  # fmt: skip
        if step.completed.total:
            some = step.completing
            opened = [np.asarray(state.open_vectors()) for state, _, _ in some]
            inputs["open_vectors"] = np.concatenate(opened)
            inputs["open_index"] = np.repeat([first for _, _, first in some], [len(vectors) for vectors in opened])
        outputs = {"byte_vectors": arrays.byte_vectors, "patch_vectors": patches.vectors}
        self._stages["encoder"].run(inputs, outputs, step.rows.count, step.completed.total)

    def _run_global(self, step: PatchedStep) -> None:
        """Set the latents of patches."""
        some, patches = step.completing, step.patches
        caches = [pooled(state.caches["global"]) for state, _, _ in some]
        slots = [cache.advance(count) - count for cache, (_, count, _) in zip(caches, some, strict=True)]
        counts = [count for _, count, _ in some]
        positions = np.repeat([slot - first for slot, (_, _, first) in zip(slots, some, strict=True)], counts)
        positions += np.arange(len(positions))
        places = patches.places["global"]
        places[:, 0], places[:, 1] = np.repeat(np.arange(len(some)), counts), positions
        patches.rotate(positions)
        inputs = {"patch_vectors": patches.vectors, **patches.inputs("global", page_table([c.pages for c in caches]))}
        count = len(positions)
        self._stages["global"].run(inputs, {"latents": patches.latents}, count, count)

    def _decode(self, step: PatchedStep) -> None:
        """Set the logits of rows."""
        rows, arrays, patches = step.rows, step.arrays, step.patches
        for state, patch in zip(rows.states, rows.patches, strict=True):
            state.carry(patch)  # the row lies in `_carried_rows`
        inputs = {
            "byte_vectors": arrays.byte_vectors, "latents": patches.latents, "latent_index": arrays.latent_index,
            "carried_row": self._carried_rows, **self._places("decoder", rows, arrays, step.sequences),
        }  # fmt: skip
        outputs = {"logits": arrays.logits, "cross_rows": patches.cross_rows}
        self._stages["decoder"].run(inputs, outputs, rows.count, step.completed.total)
        for state, count, first in step.completing:
            state.append_cross_rows(state.patch_count - count, patches.cross_rows[first : first + count])


class PatchedStepper(RaggedStepper):
    """Runs common steps of Byte Latent Transformers."""

    def __init__(
        self, config: ModelConfig, graphs: OpenedGraphs, threshold: float | None, most_sequences: int, memory: int
    ) -> None:
        """Start without sequences; `threshold` replaces the graph's own."""
        super().__init__(config, graphs, threshold, most_sequences, memory)
        self._blt = config
        self._carried_rows = np.zeros((most_sequences, cross_row_width(config)), np.float32)
        self._runner = PatchedRunner(config, graphs, self._pools, self._carried_rows, threshold)

    def _new_state(self, slot: int, caches: Mapping[StageName, KeyValueCache]) -> SequenceState:
        contracts, memories = self._graphs.contracts, self._graphs.memories
        row = self._carried_rows[slot : slot + 1]
        return SequenceState(self._blt, contracts, memories, ROLLBACK_BYTES, caches, row)
