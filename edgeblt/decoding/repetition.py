"""DRY: a penalty on going on with a passage that the text already contains.

A byte is penalized where it followed an earlier passage that equals the end of the text: by `multiplier * base **
(length - allowed_length)` nats, `length` being that of the longest such passage, if it is `allowed_length` or more.
Passages begin after the last sequence breaker of the text.

Source: p-e-w, "DRY: A modern repetition penalty", https://github.com/oobabooga/text-generation-webui/pull/5677, and
llama.cpp, src/llama-sampling.cpp, `llama_sampler_dry_apply`; both count tokens.
"""

import copy
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from edgeblt.ids import OFFSET

_MOST_NATS = 1e6  # keeps a penalized byte possible where a constraint allows no other


class RepetitionRule:
    """The penalty on one text: for every earlier place, how long a passage ending there equals the end of the text."""

    def __init__(
        self,
        multiplier: float,
        base: float,
        allowed_length: int,
        reach: int,
        breakers: Sequence[bytes],
        prompt: bytes,
    ) -> None:
        """`multiplier` in nats; lengths and `reach`, the newest bytes that are compared, in bytes."""
        self._multiplier, self._base, self._allowed, self._reach = multiplier, base, allowed_length, reach
        self._text = np.frombuffer(prompt[-reach:], np.uint8)
        self._lengths = _suffix_lengths(prompt[-reach:])  # int64 [bytes]: of the passage that ends with each byte
        self._breakers, self._kept = tuple(breakers), max(map(len, breakers), default=1)
        self._tail = prompt[-self._kept :]  # newest bytes, as many as the longest breaker has
        self._unbroken = _after_last(prompt[-reach - self._kept :], self._breakers)  # bytes after the last breaker

    def adjust(self, logits: NDArray[np.float64]) -> None:
        if self._unbroken < self._allowed:
            return
        places = np.flatnonzero(self._lengths[:-1] >= self._allowed)
        if not len(places):
            return
        longest = np.zeros(256, np.int64)
        np.maximum.at(longest, self._text[places + 1], np.minimum(self._lengths[places], self._unbroken))
        repeated = np.flatnonzero(longest)
        with np.errstate(over="ignore"):
            nats = self._multiplier * self._base ** (longest[repeated] - self._allowed).astype(np.float64)
        logits[repeated + OFFSET] -= np.minimum(nats, _MOST_NATS)

    def take(self, id: int) -> None:
        if id < OFFSET or id >= OFFSET + 256:
            return
        start = int(len(self._text) == self._reach)
        lengths = np.zeros(len(self._text) - start + 1, np.int64)
        equal = self._text == id - OFFSET
        lengths[1 - start : -1] = (self._lengths[:-1] + 1) * equal[1:]
        if not start and len(equal):
            lengths[0] = equal[0]
        lengths[-1] = len(lengths)
        self._text = np.append(self._text[start:], np.uint8(id - OFFSET))
        self._lengths = np.minimum(lengths, np.arange(1, len(lengths) + 1))
        self._tail = (self._tail + bytes([id - OFFSET]))[-self._kept :]
        self._unbroken = 0 if self._tail.endswith(self._breakers) else self._unbroken + 1

    def fork(self) -> Self:
        return copy.copy(self)  # arrays are replaced, never changed


def _after_last(text: bytes, breakers: Sequence[bytes]) -> int:
    """Number of bytes after the end of the breaker that ends last; all if there is none."""
    ends = [text.rfind(breaker) + len(breaker) for breaker in breakers if breaker in text]
    return len(text) - max(ends, default=0)


def _suffix_lengths(text: bytes) -> NDArray[np.int64]:
    """For each place, how many bytes up to and including it equal the last bytes of `text` (Gusfield's Z, reversed)."""
    reverse, count = text[::-1], len(text)
    lengths = [count] + [0] * (count - 1) if count else []
    left = right = 0
    for place in range(1, count):
        length = min(right - place, lengths[place - left]) if place < right else 0
        while place + length < count and reverse[length] == reverse[place + length]:
            length += 1
        lengths[place] = length
        if place + length > right:
            left, right = place, place + length
    return np.array(lengths[::-1], np.int64)
