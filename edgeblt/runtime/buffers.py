"""Buffers between the stages of a session: allocated once for short chunks, each in host or device memory."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeblt.bundle.config import ModelConfig
from edgeblt.bundle.contract import cross_row_width
from edgeblt.runtime.patch_reader import Patching
from edgeblt.runtime.state.device_array import Array, empty
from edgeblt.runtime.state.homes import Homes

Arrays = dict[str, Array]


class Buffers:
    """Inputs and outputs of the stages for chunks of `count` bytes."""

    def __init__(self, config: ModelConfig, homes: Homes, count: int) -> None:
        self.count = count
        self._config, self._homes = config, homes
        self.windows = np.zeros((count, config.hashes.context + 1), np.int64)
        self.patch_index = np.zeros(count, np.int64)
        self.patch_index.flags.writeable = count > 1  # for a single byte it stays 0
        self.latent_index = np.zeros(count, np.int64)
        self.byte_vectors: Array = empty((count, config.encoder.hidden_size), np.float32, homes.byte_vectors)
        self.logits = np.empty((count, config.vocab_size), np.float32)
        self.total_length = {name: np.zeros(1, np.int32) for name in ("encoder", "decoder")}
        self._patches: dict[int, PatchBuffers] = {}

    def patches(self, count: int) -> "PatchBuffers":
        if count not in self._patches:
            self._patches[count] = PatchBuffers(self._config, self._homes, self, count)
        return self._patches[count]


@functools.cache
def open_index(count: int) -> NDArray[np.int64]:
    """Patches of the bytes of one open patch, which is the first of a chunk: int64 [count]."""
    index = np.zeros(count, np.int64)
    index.flags.writeable = False
    return index


class PatchBuffers:
    """Inputs and outputs of the stages for chunks that complete `count` patches, grouped by stage."""

    def __init__(self, config: ModelConfig, homes: Homes, buffers: Buffers | None, count: int) -> None:
        self.count = count
        self._config, self._homes = config, homes
        self.vectors: Array = empty((count, config.patch_width), np.float32, homes.patch_vectors)
        self.total_length = np.zeros(1, np.int32)
        self.latents: Array = empty((count, config.global_.hidden_size), np.float32, homes.latents)
        self.global_inputs: Arrays = {"patch_vectors": self.vectors, "total_length": self.total_length}
        self.global_outputs: Arrays = {"latents": self.latents}
        if buffers is None:  # patches of several pieces, for the global stage only
            return
        self.cross_rows: Array = empty((count, cross_row_width(config)), homes.row_dtype, homes.rows)
        patches = np.arange(count + 1, dtype=np.int64)
        patches.flags.writeable = False
        self.encoder_inputs: Arrays = {
            "windows": buffers.windows,
            "patch_index": buffers.patch_index,
            "total_length": buffers.total_length["encoder"],
            "patches": patches,
            "open_vectors": empty((0, config.encoder.hidden_size), np.float32, homes.byte_vectors),
            "open_index": open_index(0),
        }
        self.encoder_outputs: Arrays = {"byte_vectors": buffers.byte_vectors, "patch_vectors": self.vectors}
        self.decoder_inputs: Arrays = {
            "latent_index": buffers.latent_index,
            "total_length": buffers.total_length["decoder"],
            "byte_vectors": buffers.byte_vectors,
        }
        self.decoder_outputs: Arrays = {"logits": buffers.logits, "cross_rows": self.cross_rows}

    def joined(self, vectors: list[Array]) -> "PatchBuffers":
        """Buffers for the global stage, with these patch vectors one after another."""
        joined, end = PatchBuffers(self._config, self._homes, None, sum(map(len, vectors))), 0
        for some in vectors:
            joined.vectors[end : end + len(some)] = some
            end += len(some)
        return joined


class EncodedPiece(NamedTuple):
    """Part of a chunk between encoder and decoder."""

    position: int
    first_patch: int  # patches completed before it
    buffers: Buffers
    patching: Patching
    patches: PatchBuffers


class Chunk(NamedTuple):
    """Results for T ids from `position` on: views that later chunks may overwrite."""

    position: int
    logits: NDArray[np.float32]  # [T, vocab]: for the id after each id
    entropies: NDArray[np.float32]  # [T]: the patcher's uncertainty about the id after each id, nats
    patch_starts: NDArray[np.bool_]  # [T]: whether the id after each id starts a patch

    def store_logits(self, logits: NDArray[np.float32], start: int) -> None:
        """Copy the logits to those from position `start` on, [n, vocab]."""
        logits[self.position - start :][: len(self.logits)] = self.logits


Take = Callable[[Chunk], object]
