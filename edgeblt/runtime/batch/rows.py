"""The rows of one step, and their way through the four stages."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeblt.bundle.config import ModelConfig
from edgeblt.bundle.contract import STAGES, STATE_WIDTH, StageName, cross_row_width
from edgeblt.runtime.batch.pool import CachePool, pooled
from edgeblt.runtime.opened_graphs import OpenedGraphs
from edgeblt.runtime.patch_reader import Patching
from edgeblt.runtime.session import ROLLBACK_BYTES, Chunk
from edgeblt.runtime.stage import StageRunner
from edgeblt.runtime.state.sequence import SequenceState

_NO_LENGTH = np.zeros(1, np.int32)  # `places` say where rows go
_NO_POSITION = np.zeros(1, np.int64)
_NO_STATE = np.zeros(STATE_WIDTH, np.float32)


@dataclass(frozen=True)
class Rows:
    """The next ids of several sequences: T rows, each sequence's one after the other.

    states: of the sequences.
    ids: of each, at most up to the next multiple of 128 positions.
    slots: the place of each sequence's carried row.
    """

    states: Sequence[SequenceState]
    ids: Sequence[NDArray[np.int64]]
    slots: Sequence[int]

    @property
    def count(self) -> int:
        return sum(map(len, self.ids))

    @property
    def firsts(self) -> list[int]:
        """First row of each sequence, and the number of rows."""
        return [0, *np.cumsum([len(ids) for ids in self.ids]).tolist()]

    @property
    def parts(self) -> Iterator[tuple[SequenceState, slice]]:
        firsts = self.firsts
        for state, first, end in zip(self.states, firsts[:-1], firsts[1:], strict=True):
            yield state, slice(first, end)


@dataclass(frozen=True)
class Completed:
    """The patches that the rows complete, P in all, each sequence's one after the other.

    counts, firsts: number of patches of each sequence, and the first of them.
    patch_index, latent_index: int64 [T], as the encoder and the decoder take them.
    """

    counts: list[int]
    firsts: list[int]
    patch_index: NDArray[np.int64]
    latent_index: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Rows, patch_starts: NDArray[np.bool_], carried_count: int) -> "Completed":
        """Patches completed where `patch_starts` says so, for decoders that have so many carried rows."""
        counts = [int(np.count_nonzero(patch_starts[own])) for _, own in rows.parts]
        firsts, total = [0, *np.cumsum(counts).tolist()], sum(counts)
        patch_index, latent_index = np.empty((2, len(patch_starts)), np.int64)
        for (_, own), slot, first, end in zip(rows.parts, rows.slots, firsts[:-1], firsts[1:], strict=True):
            behind = first + np.cumsum(patch_starts[own])  # patches of the step before the next byte
            before = behind - patch_starts[own]
            patch_index[own] = np.where(before < end, before, total)
            latent_index[own] = np.where(behind > first, carried_count + behind - 1, slot)
        return cls(counts, firsts[:-1], patch_index, latent_index)

    @property
    def total(self) -> int:
        return sum(self.counts)


class StepRunner:
    """Runs the stages on the rows of a step, over caches in pools."""

    def __init__(
        self,
        config: ModelConfig,
        graphs: OpenedGraphs,
        pools: Mapping[StageName, CachePool],
        carried_rows: NDArray[np.float32],
        threshold: float | None,
    ) -> None:
        self._config, self._pools, self._carried_rows = config, pools, carried_rows
        self._stages = {name: StageRunner(name, graphs[name], pools.get(name)) for name in STAGES}
        self._settings = {} if threshold is None else {"threshold": np.array([threshold], np.float32)}

    def run(self, rows: Rows) -> list[Chunk]:
        """Results of each sequence's rows, whose states then hold them."""
        positions = [state.position for state in rows.states]
        for state, ids in zip(rows.states, rows.ids, strict=True):
            state.ids.store(state.position, ids)
        found = self._patch(rows)
        completed = Completed.of(rows, found.patch_starts, len(self._carried_rows))
        first_patches = [state.patch_count for state in rows.states]
        byte_vectors, patch_vectors = self._encode(rows, completed)
        for (state, own), count in zip(rows.parts, completed.counts, strict=True):
            state.append(byte_vectors[own], found.patch_starts[own], count)
        latents = self._run_global(rows, completed, patch_vectors)
        logits = self._decode(rows, completed, byte_vectors, latents, first_patches)
        return [
            Chunk(position, logits[own], found.entropies[own], found.patch_starts[own])
            for position, (_, own) in zip(positions, rows.parts, strict=True)
        ]

    def _places(self, stage: StageName, states: Sequence[SequenceState], counts: Sequence[int]) -> dict[str, Any]:
        """Inputs that say where so many new rows of each sequence go, for which the caches make room."""
        pool = self._pools.get(stage)
        if pool is None:
            return {}
        places = np.empty((sum(counts), 3), np.int32)
        positions, first = np.empty(len(places), np.int64), 0
        caches = [pooled(state.caches[stage]) for state in states]
        for index, (cache, count) in enumerate(zip(caches, counts, strict=True)):
            own = slice(first, first + count)
            slots = np.arange(cache.advance(count) - count, cache.length)
            places[own, 0], places[own, 1] = index, slots
            positions[own] = cache.first + slots
            first += count
        places[:, 2] = np.arange(len(places))
        pages = np.zeros((len(caches), max(len(cache.pages) for cache in caches)), np.int32)
        for row, cache in zip(pages, caches, strict=True):
            row[: len(cache.pages)] = cache.pages
        cosines, sines = pool.rotations(positions)
        return {"places": places, "pages": pages, "cosines": cosines, "sines": sines, "total_length": _NO_LENGTH}

    def _patch(self, rows: Rows) -> Patching:
        found = Patching.empty(self._config, rows.count)
        states = np.zeros((len(rows.states), STATE_WIDTH), np.float32)
        for before, state in zip(states, rows.states, strict=True):
            if state.position:
                before[:] = state.patcher_states.rows(state.position - 1, state.position)[0]
        sequences = np.array([rows.firsts[:-1], [state.position for state in rows.states]], np.int64)
        inputs = {
            "ids": np.concatenate(rows.ids), "position": _NO_POSITION, "state": _NO_STATE,
            "sequences": np.ascontiguousarray(sequences.T), "sequence_states": states, **self._settings,
            **self._places("patcher", rows.states, [len(ids) for ids in rows.ids]),
        }  # fmt: skip
        outputs = {"entropies": found.entropies, "patch_starts": found.patch_starts, "states": found.states}
        if self._config.patcher:
            outputs["logits"] = found.logits
        self._stages["patcher"].run(inputs, outputs, rows.count, 0)
        for state, own in rows.parts:
            end = state.position + own.stop - own.start
            state.patcher_states.append(found.states[own], max(end - 2 * ROLLBACK_BYTES, 0) - 1)
        return found

    def _encode(self, rows: Rows, completed: Completed) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Byte vectors [T, width] and patch vectors [P, patch width]."""
        config, total = self._config, completed.total
        opened = [
            (state.open_vectors(), first)
            for state, count, first in zip(rows.states, completed.counts, completed.firsts, strict=True)
            if count
        ]
        windows = [
            state.ids.windows(state.position, len(ids)) for state, ids in zip(rows.states, rows.ids, strict=True)
        ]
        width = config.encoder.hidden_size
        owners = np.array([first for vectors, first in opened for _ in range(len(vectors))], np.int64)
        inputs = {
            "windows": np.concatenate(windows),
            "patch_index": completed.patch_index,
            "patches": np.arange(total + 1),
            "open_vectors": np.concatenate([np.empty((0, width), np.float32), *(vectors for vectors, _ in opened)]),
            "open_index": owners,
            **self._places("encoder", rows.states, [len(ids) for ids in rows.ids]),
        }  # fmt: skip
        byte_vectors = np.empty((rows.count, width), np.float32)
        patch_vectors = np.empty((total, config.patch_width), np.float32)
        outputs = {"byte_vectors": byte_vectors, "patch_vectors": patch_vectors}
        self._stages["encoder"].run(inputs, outputs, rows.count, total)
        return byte_vectors, patch_vectors

    def _run_global(self, rows: Rows, completed: Completed, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Latents [P, width] of the patches."""
        latents = np.empty((completed.total, self._config.global_.hidden_size), np.float32)
        if completed.total:
            some = [(state, count) for state, count in zip(rows.states, completed.counts, strict=True) if count]
            places = self._places("global", [state for state, _ in some], [count for _, count in some])
            self._stages["global"].run(
                {"patch_vectors": vectors, **places}, {"latents": latents}, completed.total, completed.total
            )
        return latents

    def _decode(
        self,
        rows: Rows,
        completed: Completed,
        byte_vectors: NDArray[np.float32],
        latents: NDArray[np.float32],
        first_patches: Sequence[int],
    ) -> NDArray[np.float32]:
        """Logits [T, vocab]."""
        for state, patch in zip(rows.states, first_patches, strict=True):
            state.carried_row(patch)  # lies in `_carried_rows`
        inputs = {
            "byte_vectors": byte_vectors, "latents": latents, "latent_index": completed.latent_index,
            "carried_row": self._carried_rows,
            **self._places("decoder", rows.states, [len(ids) for ids in rows.ids]),
        }  # fmt: skip
        logits = np.empty((rows.count, self._config.vocab_size), np.float32)
        cross_rows = np.empty((completed.total, cross_row_width(self._config)), np.float32)
        outputs = {"logits": logits, "cross_rows": cross_rows}
        self._stages["decoder"].run(inputs, outputs, rows.count, completed.total)
        for state, patch, first, count in zip(
            rows.states, first_patches, completed.firsts, completed.counts, strict=True
        ):
            state.append_cross_rows(patch, cross_rows[first : first + count])
        return logits
