"""Hash functions of the n-gram embeddings: the primes, and the hash as a product with a matrix.

hash = sum over i of id[t - n + 1 + i] * prime ** i, wrapping in int64, modulo the vocabulary (non-negative).
"""

import numpy as np
from numpy.typing import NDArray

from edgeblt.bundle.config import HashConfig

# transformers' and Meta's list, in order; hash function f uses prime f modulo its length.
PRIMES = (
    1000000007, 5915587277, 1500450271, 3267000013, 5754853343, 4093082899,
    9576890767, 3628273133, 2860486313, 5463458053, 3367900313,
)  # fmt: skip


def hash_coefficients(hashes: HashConfig) -> NDArray[np.int64]:
    """Factors of the ids of an n-gram: int64 [longest, tables], zeros first where a table's n-gram is shorter."""
    longest = max(hashes.group_sizes)
    columns = []
    for function in range(hashes.function_count):
        prime = PRIMES[function % len(PRIMES)]
        for size in hashes.group_sizes:
            powers = [_wrap(prime**power) for power in range(size)]
            columns.append([0] * (longest - size) + powers)
    return np.array(columns, np.int64).T


def _wrap(value: int) -> int:
    """`value` as a wrapping int64."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)
