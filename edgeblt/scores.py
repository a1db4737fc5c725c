"""Scores of a text's bytes under a model."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeblt.decoding.sampling import log_softmax
from edgeblt.runtime.buffers import Chunk


@dataclass(frozen=True, repr=False)
class Scores:
    """Scores of the bytes of a text; entry t is for byte t, given the bytes before it.

    logprobs: float32 [T], nats: log-probability of the byte.
    entropies: float32 [T], nats: the patcher's entropy before the byte; all 0 where the patching rule uses none.
    patch_starts: bool [T], whether the byte starts a patch.
    likeliest: bool [T], whether no id is likelier than the byte.
    """

    logprobs: NDArray[np.float32]  # [T] nats
    entropies: NDArray[np.float32]  # [T] nats, of the patcher; all 0 where the patching rule uses none
    patch_starts: NDArray[np.bool_]  # [T] whether the byte starts a patch
    likeliest: NDArray[np.bool_]  # [T] whether no id is likelier than the byte

    @property
    def bits_per_byte(self) -> float:
        """Mean negative log2-probability of a byte; nan for an empty text."""
        return float(-self.logprobs.mean(dtype=np.float64) / np.log(2)) if len(self.logprobs) else float("nan")

    def __repr__(self) -> str:
        sizes = f"{len(self.logprobs)} bytes in {int(self.patch_starts.sum())} patches"
        return f"<edgeblt.Scores of {sizes}: {self.bits_per_byte:.4f} bits per byte>"


def empty_scores(count: int) -> Scores:
    """Scores of `count` bytes, to be stored."""
    nats, flags = np.empty((2, count), np.float32), np.empty((2, count), np.bool_)
    return Scores(nats[0], nats[1], flags[0], flags[1])


def store_scores(scores: Scores, chunk: Chunk, targets: NDArray[np.int64]) -> None:
    """Store the scores of a chunk's next bytes; `targets` are the ids of all bytes of the text."""
    rows = slice(chunk.position, chunk.position + len(chunk.logits))
    scores.logprobs[rows] = log_softmax(chunk.logits)[np.arange(len(chunk.logits)), targets[rows]]
    scores.entropies[rows] = chunk.entropies
    scores.patch_starts[rows] = chunk.patch_starts
    scores.likeliest[rows] = chunk.logits.argmax(1) == targets[rows]


def cut_into_patches(data: bytes, patch_starts: Sequence[bool] | NDArray[np.bool_]) -> list[bytes]:
    """Cut `data` before each byte t with patch_starts[t]; the first and the last piece may be parts of a patch."""
    cuts = [0, *(index for index, start in enumerate(patch_starts) if start and index), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(cuts)] if data else []
