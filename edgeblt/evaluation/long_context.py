"""The suite `long`: bits per byte by position, and numbers to be found again in a long text; see docs/evaluation.md.

Documents are the texts joined, each beginning somewhere else, so that every text stands at several positions.
"""

import bisect
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeblt.errors import EdgebltError
from edgeblt.evaluation.robust_suite import answered
from edgeblt.evaluation.suite_report import ACCURACY, BITS, MARGIN, SuiteFigure
from edgeblt.evaluation.text_scorer import Advance, Question, TextScorer
from edgeblt.measure.noise import uniform_draws
from edgeblt.measure.reference import Text

BUCKETS = (0, 256, 1024, 2048, 4096, 8192, 16384)  # ends of the ranges of positions, bytes
BLOCK_BYTES = 256  # the unit that is resampled: a block of the texts
NEEDLE_BYTES = (1024, 4096, 16384)  # lengths of the texts that hold needles
DEPTHS = (0.1, 0.35, 0.65, 0.9)  # where needles stand, as a share of the text
LEAST_BYTES = NEEDLE_BYTES[0]
DOCUMENTS, QUICK_DOCUMENTS = 6, 4
HAYSTACKS, QUICK_HAYSTACKS = 6, 4  # a length
QUICK_MOST_BYTES = 4096
EVERY_POSITION, EVERY_NEEDLE, MARGINS = "every position", "every needle", "margin of every needle"
_NAMES = ("Alder", "Birch", "Cedar", "Hazel", "Maple", "Olive", "Rowan", "Willow")


@dataclass(frozen=True)
class Haystack:
    """A text with a needle at each of `DEPTHS`, and a question about each, whose wrong answers are the others'."""

    text: bytes
    length: int
    questions: tuple[Question, ...]


class LongSuite:
    """Blocks of documents, then needles; the items are in this order, margins last.

    Lengths that the texts do not reach are left out. Raises EdgebltError for texts of less than `LEAST_BYTES` together.
    """

    def __init__(self, texts: Sequence[Text], quick: bool, seed: int) -> None:
        self._texts = [text.name for text in texts]
        total = sum(len(text.data) for text in texts)
        if total < LEAST_BYTES:
            raise EdgebltError(f"the texts hold {total:,} bytes together; give {LEAST_BYTES:,} bytes or more")
        most = min(total, QUICK_MOST_BYTES if quick else BUCKETS[-1])
        ends = list(itertools.accumulate(len(text.data) for text in texts))
        count = QUICK_DOCUMENTS if quick else DOCUMENTS
        starts = [number * total // count for number in range(count)]
        self._documents = [joined(texts, start, most) for start in starts]
        self._blocks = [(number, place) for number in range(count) for place in range(0, most, BLOCK_BYTES)]
        # Blocks on the same bytes of the texts are no evidence of their own: they are one unit.
        places = [(starts[number] + place) % total for number, place in self._blocks]
        self._sources = [place // BLOCK_BYTES for place in places]
        self._block_texts = [bisect.bisect_right(ends, place) for place in places]
        lengths = [length for length in NEEDLE_BYTES if length <= most]
        self._haystacks = [
            make_haystack(texts, length, number, seed)
            for length in lengths
            for number in range(QUICK_HAYSTACKS if quick else HAYSTACKS)
        ]
        self.bytes = sum(map(len, self._documents)) + sum(len(haystack.text) for haystack in self._haystacks)

    @property
    def units(self) -> NDArray[np.int64]:
        """The unit [n] of each item: a block of the texts wherever it stands, or a haystack with all its needles."""
        first = max(self._sources) + 1
        needles = [first + number for number in range(len(self._haystacks)) for _ in DEPTHS]
        return np.array([*self._sources, *needles, *needles])

    @property
    def weights(self) -> NDArray[np.float64]:
        """The weight [n] of each item: its bytes, or 1 for a needle."""
        sizes = [min(BLOCK_BYTES, len(self._documents[number]) - place) for number, place in self._blocks]
        return np.array(sizes + [1] * (2 * len(DEPTHS) * len(self._haystacks)), np.float64)

    @property
    def figures(self) -> tuple[SuiteFigure, ...]:
        return (*self._position_figures(), *self._needle_figures())

    def values(self, scorer: TextScorer, advance: Advance) -> NDArray[np.float64]:
        """Bits of each block, then for each needle whether its own number is the likeliest, then the margin in nats."""
        scored = scorer.score(self._documents, advance)
        bits = [
            -float(scored[number][place : place + BLOCK_BYTES].sum()) / math.log(2) for number, place in self._blocks
        ]
        margins = [
            right - float(np.max(wrong))
            for haystack in self._haystacks
            for right, *wrong in scorer.answers(haystack.text, haystack.questions, advance)
        ]
        return np.array([*bits, *map(answered, margins), *margins])

    def _position_figures(self) -> Iterator[SuiteFigure]:
        places = np.array([place for _, place in self._blocks])
        for low, high in itertools.pairwise(BUCKETS):
            items = np.flatnonzero((places >= low) & (places < high))
            yield SuiteFigure("position", f"bytes {low:,} to {high:,}", "", BITS, items)
        yield SuiteFigure("position", EVERY_POSITION, "", BITS, np.arange(len(places)))
        for number, text in enumerate(self._texts):
            items = np.flatnonzero(np.array(self._block_texts) == number)
            yield SuiteFigure("position", EVERY_POSITION, text, BITS, items, is_main=True)

    def _needle_figures(self) -> Iterator[SuiteFigure]:
        first = len(self._blocks)
        where = [(haystack.length, depth) for haystack in self._haystacks for depth in DEPTHS]
        count = len(where)

        def over(name: str, length: int | None, depth: float | None, is_main: bool = False) -> SuiteFigure:
            items = [first + n for n, (a, b) in enumerate(where) if length in (None, a) and depth in (None, b)]
            return SuiteFigure("needle", name, "", ACCURACY, np.array(items, np.int64), is_main)

        for length in dict.fromkeys(length for length, _ in where):
            for depth in DEPTHS:
                yield over(f"{length:,} bytes, at {depth:.0%}", length, depth)
            yield over(f"{length:,} bytes", length, None)
        yield over(EVERY_NEEDLE, None, None, is_main=True)
        margins = np.arange(first + count, first + 2 * count)
        yield SuiteFigure("needle", MARGINS, "", MARGIN, margins, is_main=True)


def joined(texts: Sequence[Text], start: int, length: int) -> bytes:
    """`length` bytes, at most all, of the texts one after the other, from byte `start` on, around to the first."""
    whole = b"".join(text.data for text in texts)
    return (whole[start:] + whole[:start])[:length]


def make_haystack(texts: Sequence[Text], length: int, number: int, seed: int) -> Haystack:
    """The `number`th text of about `length` bytes with needles.

    Each needle says `The number of Hazel is 4821.`; all have different names and numbers, which differ in every digit.
    """
    draws = uniform_draws(8, (seed, length, number))
    hay = joined(texts, number * sum(len(text.data) for text in texts) // HAYSTACKS, length)
    names = sorted(_NAMES, key=lambda name: float(draws[_NAMES.index(name)]))[: len(DEPTHS)]
    numbers = _numbers(len(DEPTHS), (seed, length, number, 1))
    parts, done = [], 0
    for depth, name, value in zip(DEPTHS, names, numbers, strict=True):
        place = _between_characters(hay, int(depth * len(hay)))
        parts += [hay[done:place], f"\nThe number of {name} is {value}.\n".encode()]
        done = place
    questions = tuple(
        Question(f"\nThe number of {name} is ".encode(), (value.encode(), *(o.encode() for o in numbers if o != value)))
        for name, value in zip(names, numbers, strict=True)
    )
    return Haystack(b"".join([*parts, hay[done:]]), length, questions)


def _numbers(count: int, seed: Sequence[int]) -> list[str]:
    """Numbers of four digits that differ from each other in every digit; none begins with 0."""
    columns = []
    for place in range(4):
        draws = uniform_draws(10, (*seed, place))
        columns.append([digit for digit in np.argsort(draws, kind="stable").tolist() if digit or place][:count])
    return ["".join(map(str, digits)) for digits in zip(*columns, strict=True)]


def _between_characters(data: bytes, place: int) -> int:
    """The first place from `place` on at which no UTF-8 sequence is cut; at most three bytes further."""
    for further in range(4):
        if place + further >= len(data) or data[place + further] & 0xC0 != 0x80:
            return min(place + further, len(data))
    return place
