"""Noise on the bytes of a text, which a byte-level model should tolerate, quantized or not.

Every function is pure: the same bytes and seed give the same bytes, on every machine and with every numpy. Noise
ignores characters: it may cut a UTF-8 sequence, as a device may.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

RATE = 0.05  # share of the bytes that a noise changes, random case apart
SEED = 0
_CASE_BIT = 0x20  # upper and lower ASCII letters differ in this bit alone


class Noise(Protocol):
    def __call__(self, data: bytes, seed: int = SEED) -> bytes: ...


def random_case(data: bytes, seed: int = SEED) -> bytes:
    """Sets every ASCII letter to upper or lower case with equal probability; keeps the length."""
    values = np.frombuffer(data, np.uint8)
    lower = values | _CASE_BIT
    letters = (lower >= ord("a")) & (lower <= ord("z"))
    upper = uniform_draws(len(data), seed) < 0.5
    return np.where(letters, np.where(upper, lower ^ _CASE_BIT, lower), values).astype(np.uint8).tobytes()


def dropped_bytes(data: bytes, seed: int = SEED) -> bytes:
    """Drops each byte with probability `RATE`; keeps the first where all would be dropped."""
    kept = np.frombuffer(data, np.uint8)[uniform_draws(len(data), seed) >= RATE]
    return kept.tobytes() or data[:1]


def doubled_bytes(data: bytes, seed: int = SEED) -> bytes:
    """Doubles each byte with probability `RATE`."""
    return np.repeat(np.frombuffer(data, np.uint8), 1 + (uniform_draws(len(data), seed) < RATE)).tobytes()


def swapped_bytes(data: bytes, seed: int = SEED) -> bytes:
    """Swaps each byte with the next with probability `RATE`, unless it was just swapped; keeps the length."""
    swapped = np.frombuffer(data, np.uint8).copy()
    free = 0  # the first position that no swap has touched
    for first in np.flatnonzero(uniform_draws(len(data), seed)[:-1] < RATE).tolist():
        if first >= free:
            swapped[[first, first + 1]] = swapped[[first + 1, first]]
            free = first + 2
    return swapped.tobytes()


NOISES: Mapping[str, Noise] = MappingProxyType(
    {
        "random case": random_case,
        "dropped bytes": dropped_bytes,
        "doubled bytes": doubled_bytes,
        "swapped bytes": swapped_bytes,
    }
)


def uniform_draws(count: int, seed: int | Sequence[int]) -> NDArray[np.float64]:
    """Uniform numbers [count] in [0, 1) from the raw generator, whose output numpy promises never to change."""
    return np.asarray(np.random.PCG64(seed).random_raw(count) >> np.uint64(11), np.float64) * 2.0**-53
