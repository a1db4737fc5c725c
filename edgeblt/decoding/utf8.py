"""UTF-8 in a stream of bytes: whole characters out of it, and which bytes may follow.

Source of the table: Unicode 16, table 3-7, well-formed UTF-8 byte sequences.
"""

import codecs
import copy
from collections.abc import Collection, Iterable, Iterator
from typing import Self

import numpy as np
from numpy.typing import NDArray

from edgeblt.ids import OFFSET

BOUNDARY = 0  # state between two characters; 1, 2 and 3 await so many bytes from 80 to BF
_FIRST = ((0x00, 0x80, 0), (0xC2, 0xE0, 1), (0xE0, 0xE1, 4), (0xE1, 0xED, 2), (0xED, 0xEE, 5), (0xEE, 0xF0, 2),
          (0xF0, 0xF1, 6), (0xF1, 0xF4, 3), (0xF4, 0xF5, 7))  # fmt: skip
_SECOND = {1: (0x80, 0xC0, 0), 2: (0x80, 0xC0, 1), 3: (0x80, 0xC0, 2), 4: (0xA0, 0xC0, 1), 5: (0x80, 0xA0, 1),
           6: (0x90, 0xC0, 2), 7: (0x80, 0x90, 2)}  # fmt: skip
_INVALID = -1


def _table() -> tuple[tuple[int, ...], ...]:
    rows = [[_INVALID] * 256 for _ in range(8)]
    for state, ranges in ((BOUNDARY, _FIRST), *((state, (range_,)) for state, range_ in _SECOND.items())):
        for low, high, following in ranges:
            rows[state][low:high] = [following] * (high - low)
    return tuple(map(tuple, rows))


NEXT = _table()
"""State after each byte in each state, -1 where the byte is not valid there: 8 rows of 256."""


def tail_state(data: bytes) -> int:
    """State after `data`: BOUNDARY unless it ends within a character that is valid so far."""
    for start in range(max(len(data) - 3, 0), len(data)):
        state = BOUNDARY
        for byte in data[start:]:
            state = NEXT[state][byte]
            if state <= BOUNDARY:
                break
        if state > BOUNDARY:
            return state
    return BOUNDARY


class Utf8Rule:
    """Forbids bytes that would make a text invalid, and its end within a character."""

    _FORBIDDEN = np.array(NEXT) == _INVALID  # [8, 256]

    def __init__(self, prompt: bytes, ends: Collection[int]) -> None:
        """Start after `prompt`; `ends` are the ids that end the text."""
        self._state = tail_state(prompt)
        self._ends = [end for end in ends if not OFFSET <= end < OFFSET + 256]

    def adjust(self, logits: NDArray[np.float64]) -> None:
        logits[OFFSET : OFFSET + 256][self._FORBIDDEN[self._state]] = -np.inf
        if self._state != BOUNDARY:
            logits[self._ends] = -np.inf

    def take(self, id: int) -> None:
        if OFFSET <= id < OFFSET + 256:
            self._state = max(NEXT[self._state][id - OFFSET], BOUNDARY)

    def fork(self) -> Self:
        return copy.copy(self)


def utf8_pieces(stream: Iterable[bytes]) -> Iterator[str]:
    """Yields whole characters as soon as their last byte arrives; bytes that are not UTF-8 become U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for data in stream:
        if piece := decoder.decode(data):
            yield piece
    if piece := decoder.decode(b"", final=True):
        yield piece
