"""Arrays that the stages read and write in a step: the same ones in each step of the same small size.

Binding an array to a graph takes longer than filling a small one.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeblt.bundle.config import ModelConfig
from edgeblt.bundle.contract import STATE_WIDTH, StageName, cross_row_width
from edgeblt.runtime.batch.pool import CachePool, Rope
from edgeblt.runtime.patch_reader import Patching

_NO_LENGTH = np.zeros(1, np.int32)  # `places` say where rows go


class _Angles(NamedTuple):
    """RoPE's factors [T, head_dim / 2]."""

    cosines: NDArray[np.float32]
    sines: NDArray[np.float32]

    @classmethod
    def of(cls, rope: Rope, count: int) -> "_Angles":
        return cls(*(np.empty((count, rope.head_dim // 2), np.float32) for _ in range(2)))


class Places:
    """Places of T rows in the caches of some stages: `places` [T, 3] by stage; each row has angles of its own."""

    def __init__(self, pools: Mapping[StageName, CachePool], count: int) -> None:
        rows = np.arange(count, dtype=np.int32)
        self.places = {stage: np.stack([rows, rows, rows], axis=1) for stage in pools}
        self._rope = {stage: pool.rope for stage, pool in pools.items()}
        self._angles = {rope: _Angles.of(rope, count) for rope in set(self._rope.values())}

    def rotate(self, positions: NDArray[np.int64]) -> None:
        """Compute the angles of rows at these positions."""
        for rope, angles in self._angles.items():
            rope.rotations(positions, angles.cosines, angles.sines)

    def inputs(self, stage: StageName, pages: NDArray[np.int32]) -> dict[str, NDArray[Any]]:
        """Inputs of a stage that say where the rows go, in these pages of its sequences."""
        cosines, sines = self._angles[self._rope[stage]]
        return {
            "places": self.places[stage],
            "pages": pages,
            "cosines": cosines,
            "sines": sines,
            "total_length": _NO_LENGTH,
        }


class RowArrays(Places):
    """Arrays for T rows: ids, their places in the local stages, and the local stages' results."""

    def __init__(self, config: ModelConfig, pools: Mapping[StageName, CachePool], count: int) -> None:
        super().__init__({name: pool for name, pool in pools.items() if name != "global"}, count)
        self.windows = np.zeros((count, config.hashes.context + 1), np.int64)
        self.ids = np.zeros(count, np.int64)
        self.patch_index = np.zeros(count, np.int64)
        self.latent_index = np.zeros(count, np.int64)
        self.found = Patching.empty(config, count)
        self.byte_vectors = np.empty((count, config.encoder.hidden_size), np.float32)
        self.logits = np.empty((count, config.vocab_size), np.float32)


class SequenceArrays:
    """Arrays for n sequences: the patcher's, and the page of each in every windowed cache."""

    def __init__(self, local: Iterable[StageName], count: int) -> None:
        self.sequences = np.zeros((count, 2), np.int64)
        self.states = np.zeros((count, STATE_WIDTH), np.float32)
        self.pages = {name: np.zeros((count, 1), np.int32) for name in local}


class PatchArrays(Places):
    """Arrays for P completed patches: vectors, latents, their places in the global cache."""

    def __init__(self, config: ModelConfig, pool: CachePool, count: int) -> None:
        super().__init__({"global": pool}, count)
        self.patches = np.arange(count + 1)
        self.vectors = np.empty((count, config.patch_width), np.float32)
        self.latents = np.empty((count, config.global_.hidden_size), np.float32)
        self.cross_rows = np.empty((count, cross_row_width(config)), np.float32)


def page_table(pages: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    """Pages of each sequence, int32 [sequences, most pages]; a shorter row ends with any pages."""
    most = max(map(len, pages))
    if len(pages) == 1:
        return np.array(pages, np.int32)
    table = np.zeros((len(pages), most), np.int32)
    for row, own in zip(table, pages, strict=True):
        row[: len(own)] = own
    return table
