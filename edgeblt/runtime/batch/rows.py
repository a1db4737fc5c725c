"""The rows of one step, and their way through the four stages."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeblt.bundle.config import ModelConfig
from edgeblt.bundle.contract import STAGES, STATE_WIDTH, StageName
from edgeblt.runtime.batch.pool import CachePool, pooled
from edgeblt.runtime.opened_graphs import MANY, OpenedGraphs
from edgeblt.runtime.patch_reader import Patching
from edgeblt.runtime.session import ROLLBACK_BYTES, Chunk
from edgeblt.runtime.stage import StageRunner
from edgeblt.runtime.state.sequence import SequenceState

_NO_LENGTH = np.zeros(1, np.int32)  # `places` say where rows go
_NO_POSITION = np.zeros(1, np.int64)
_NO_STATE = np.zeros(STATE_WIDTH, np.float32)


@dataclass(frozen=True)
class StepRows:
    """The next ids of several sequences: T rows, each sequence's one after the other.

    states: of the sequences.
    ids: of each, at most up to the next multiple of 128 positions.
    slots: the place of each sequence's carried row.
    """

    states: Sequence[SequenceState]
    ids: Sequence[NDArray[np.int64]]
    slots: Sequence[int]

    @cached_property
    def counts(self) -> list[int]:
        return [len(ids) for ids in self.ids]

    @cached_property
    def count(self) -> int:
        return sum(self.counts)

    @cached_property
    def parts(self) -> list[tuple[SequenceState, slice]]:
        """Each sequence with its rows."""
        ends = itertools.accumulate(self.counts)
        return [
            (state, slice(end - count, end)) for state, count, end in zip(self.states, self.counts, ends, strict=True)
        ]


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
    def of(cls, rows: StepRows, patch_starts: NDArray[np.bool_], carried_count: int) -> "Completed":
        """Patches completed where `patch_starts` says so, for decoders that have so many carried rows."""
        behind = np.cumsum(patch_starts)  # patches of the step before the next byte
        ends = [int(behind[own.stop - 1]) for _, own in rows.parts]
        firsts = [0, *ends[:-1]]
        before: NDArray[np.int64] = behind - patch_starts
        own_ends, own_firsts, slots = np.repeat(np.array([ends, firsts, rows.slots], np.int64), rows.counts, axis=1)
        patch_index = np.where(before < own_ends, before, ends[-1])
        latent_index = np.where(behind > own_firsts, carried_count - 1 + behind, slots)
        return cls([end - first for first, end in zip(firsts, ends, strict=True)], firsts, patch_index, latent_index)

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
        self._row_width = carried_rows.shape[1]
        self._stages = {name: StageRunner(name, graphs[name], pools.get(name)) for name in STAGES}
        self._kept: dict[tuple[str, str, tuple[int, ...]], NDArray[Any]] = {}
        self._settings = {} if threshold is None else {"threshold": np.array([threshold], np.float32)}

    def run(self, rows: StepRows) -> list[Chunk]:
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
        caches = [pooled(state.caches[stage]) for state in states]
        total = sum(counts)
        own = [(cache.first, cache.advance(count) - count) for cache, count in zip(caches, counts, strict=True)]
        places = self._array((stage, "places"), (total, 3), np.int32)
        if total == len(caches):  # a row each
            slots = np.array([slot for _, slot in own])
            places[:, 0], firsts = np.arange(total), np.array([cache.first for cache in caches])
        else:
            slots = np.concatenate(
                [np.arange(cache.length - n, cache.length) for cache, n in zip(caches, counts, strict=True)]
            )
            places[:, 0] = np.repeat(np.arange(len(caches)), counts)
            firsts = np.repeat([cache.first for cache in caches], counts)
        places[:, 1], places[:, 2] = slots, np.arange(total)
        most = max(len(cache.pages) for cache in caches)
        pages = self._array((stage, "pages"), (len(caches), 1 << (most - 1).bit_length()), np.int32)
        for row, cache in zip(pages, caches, strict=True):
            row[: len(cache.pages)] = cache.pages
        angles = (total, pool.spec.head_dim // 2)
        cosines, sines = (self._array((stage, name), angles, np.float32) for name in ("cosines", "sines"))
        pool.rotations(firsts + slots, cosines, sines)
        return {"places": places, "pages": pages, "cosines": cosines, "sines": sines, "total_length": _NO_LENGTH}

    def _array(self, purpose: tuple[str, str], shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
        """An array of any content: the same one for each purpose and small shape, so that it stays bound."""
        if shape[0] >= MANY:
            return np.empty(shape, dtype)
        key = (*purpose, shape)
        if key not in self._kept:
            self._kept[key] = np.zeros(shape, dtype)
        return self._kept[key]

    def _patch(self, rows: StepRows) -> Patching:
        found = Patching.empty(self._config, rows.count)
        states = np.zeros((len(rows.states), STATE_WIDTH), np.float32)
        for before, state in zip(states, rows.states, strict=True):
            if state.position:
                before[:] = state.patcher_states.rows(state.position - 1, state.position)[0]
        inputs = {
            "ids": np.concatenate(rows.ids), "position": _NO_POSITION, "state": _NO_STATE,
            "sequences": np.array([(own.start, state.position) for state, own in rows.parts], np.int64),
            "sequence_states": states, **self._settings, **self._places("patcher", rows.states, rows.counts),
        }  # fmt: skip
        outputs = {"entropies": found.entropies, "patch_starts": found.patch_starts, "states": found.states}
        if self._config.patcher:
            outputs["logits"] = found.logits
        self._stages["patcher"].run(inputs, outputs, rows.count, 0)
        for state, own in rows.parts:
            end = state.position + own.stop - own.start
            state.patcher_states.append(found.states[own], max(end - 2 * ROLLBACK_BYTES, 0) - 1)
        return found

    def _encode(self, rows: StepRows, completed: Completed) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
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
            **self._places("encoder", rows.states, rows.counts),
        }  # fmt: skip
        byte_vectors = self._array(("encoder", "byte_vectors"), (rows.count, width), np.float32)
        patch_vectors = self._array(("encoder", "patch_vectors"), (total, config.patch_width), np.float32)
        outputs = {"byte_vectors": byte_vectors, "patch_vectors": patch_vectors}
        self._stages["encoder"].run(inputs, outputs, rows.count, total)
        return byte_vectors, patch_vectors

    def _run_global(self, rows: StepRows, completed: Completed, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Latents [P, width] of the patches."""
        latents = self._array(("global", "latents"), (completed.total, self._config.global_.hidden_size), np.float32)
        if completed.total:
            some = [(state, count) for state, count in zip(rows.states, completed.counts, strict=True) if count]
            places = self._places("global", [state for state, _ in some], [count for _, count in some])
            self._stages["global"].run(
                {"patch_vectors": vectors, **places}, {"latents": latents}, completed.total, completed.total
            )
        return latents

    def _decode(
        self,
        rows: StepRows,
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
            "carried_row": self._carried_rows, **self._places("decoder", rows.states, rows.counts),
        }  # fmt: skip
        logits = self._array(("decoder", "logits"), (rows.count, self._config.vocab_size), np.float32)
        cross_rows = self._array(("decoder", "cross_rows"), (completed.total, self._row_width), np.float32)
        outputs = {"logits": logits, "cross_rows": cross_rows}
        self._stages["decoder"].run(inputs, outputs, rows.count, completed.total)
        for state, patch, first, count in zip(
            rows.states, first_patches, completed.firsts, completed.counts, strict=True
        ):
            state.append_cross_rows(patch, cross_rows[first : first + count])
        return logits
