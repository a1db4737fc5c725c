"""Ids of bytes in the model's vocabulary: byte `b` is id `b + 4`; ids 0..3 are special."""

import numpy as np
from numpy.typing import NDArray

BOE, BOS, EOS, BPE_DELIMITER = 0, 1, 2, 3
OFFSET = 4
VOCAB_SIZE = 256 + OFFSET


def encode(data: bytes) -> NDArray[np.int64]:
    """Ids of `data`, int64 [len(data)], without BOS."""
    return np.frombuffer(data, np.uint8).astype(np.int64) + OFFSET


def decode(ids: NDArray[np.int64]) -> bytes:
    """Bytes of those `ids` that stand for bytes."""
    return (ids[(ids >= OFFSET) & (ids < VOCAB_SIZE)] - OFFSET).astype(np.uint8).tobytes()
