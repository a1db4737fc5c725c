"""Drafters: cheap predictions of the next ids, for speculative decoding.

    patcher    the patcher's own distribution of the next byte, which every pass computes anyway
    decoder    encoder and decoder alone, which continue the open patch with the latents of completed ones
    heads      heads of the model itself, which guess the bytes after the next
    ngram      the bytes that followed the newest earlier occurrence of the last few bytes

No draft changes what is generated: `speculation.py` verifies each id.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeblt.ids import OFFSET
from edgeblt.runtime.session import Session

MOST_DRAFTED = 24  # fewer than a session rolls back at once
LENGTHS = (4, 6, 8, 16)  # bytes in the suffixes that `ngram` searches for
_NO_BYTE = 0xFF  # stands for ids that are not bytes: UTF-8 never contains it
_REACH = 8192  # newest bytes that `ngram` searches; searching more takes as long as a pass of a small model
_BINS = 8  # equal ranges of predicted probability, each with its own acceptance rate

Pick = Callable[[NDArray[np.float32], int], tuple[int, float]]
"""Maps logits [vocab] and n to the drafted n-th id after the pending one, and its probability."""


class Draft(NamedTuple):
    ids: list[int]
    expected: float  # expected number of accepted ids


NOTHING = Draft([], 0.0)


class AcceptanceRates:
    """Exponentially weighted acceptance rates of drafted ids by kind, such as a range of predicted probability.

    A model keeps them from one text to the next.
    """

    _FIRST_WEIGHT = 4.0  # weight of the initial rates, in drafted ids
    _DECAY = 0.98

    def __init__(self, first: Sequence[float]) -> None:
        self._tried = [self._FIRST_WEIGHT] * len(first)
        self._right = [self._FIRST_WEIGHT * rate for rate in first]

    def __getitem__(self, kind: int) -> float:
        return self._right[kind] / self._tried[kind]

    def add(self, kind: int, right: bool) -> None:
        self._tried[kind] = self._DECAY * self._tried[kind] + 1
        self._right[kind] = self._DECAY * self._right[kind] + right


class Drafter(Protocol):
    """Drafts ids for one sequence."""

    def extend(self, ids: Sequence[int]) -> None:
        """Append ids to the text."""

    def draft(self, session: Session, pending: int, pick: Pick, needed: float) -> Draft:
        """Ids that may follow `pending`, the text's newest id, which the session has not been fed.

        The draft ends where the estimated probability that all its ids are accepted would no longer exceed `needed`.
        """
        ...

    def judge(self, drafted: int, accepted: int) -> None:
        """Record that `accepted` of the last draft's `drafted` ids were accepted."""


class _Stepwise:
    """Drafts id by id from the logits of a smaller model, while acceptance is likely enough."""

    def __init__(self, rates: AcceptanceRates) -> None:
        self._rates = rates
        self._bins: list[int] = []  # range of predicted probability of each id in the last draft

    def extend(self, ids: Sequence[int]) -> None:
        pass

    def judge(self, drafted: int, accepted: int) -> None:
        for index, kind in enumerate(self._bins[: min(accepted + 1, drafted)]):
            self._rates.add(kind, index < accepted)

    def _guess(
        self,
        step: Callable[[list[int]], NDArray[np.float32]],
        pending: int,
        pick: Pick,
        needed: float,
        most: int = MOST_DRAFTED,
    ) -> Draft:
        ids, chance, expected = [pending], 1.0, 0.0
        self._bins = []
        while len(ids) <= most:
            chosen, probability = pick(step(ids), len(ids) - 1)
            kind = min(int(probability * _BINS), _BINS - 1)
            chance *= self._rates[kind]
            if chance <= needed:
                break
            ids.append(chosen)
            expected += chance
            self._bins.append(kind)
        return Draft(ids[1:], expected)


class PatcherDrafter(_Stepwise):
    """Drafts from the patcher's logits; the patcher does not run again when accepted ids are fed."""

    def draft(self, session: Session, pending: int, pick: Pick, needed: float) -> Draft:
        return self._guess(session.read_ahead, pending, pick, needed)


class DecoderDrafter(_Stepwise):
    """Drafts from the logits of encoder and decoder, as if the open patch did not end."""

    def draft(self, session: Session, pending: int, pick: Pick, needed: float) -> Draft:
        with session.within_patch() as feed:
            return self._guess(lambda ids: feed(ids[-1]), pending, pick, needed)


class HeadsDrafter(_Stepwise):
    """Drafts from the model's own guesses of the bytes after the next, which its last run left."""

    def draft(self, session: Session, pending: int, pick: Pick, needed: float) -> Draft:
        further = session.further_logits()
        if not len(further):
            self._bins = []
            return NOTHING
        return self._guess(lambda ids: further[len(ids) - 1], pending, pick, needed, len(further))


class NgramDrafter:
    """Drafts the bytes that followed the newest earlier occurrence of the longest suffix in LENGTHS that has one.

    Each suffix length has two acceptance rates: for the first byte, and for each byte after accepted ones.
    """

    def __init__(self, rates: AcceptanceRates) -> None:
        self._rates = rates
        self._text = bytearray()
        self._kind = 0  # index in LENGTHS of the suffix found last
        self._place = 0  # index in the text where that occurrence ends

    def extend(self, ids: Sequence[int]) -> None:
        for id in ids:
            self._text.append(id - OFFSET if id >= OFFSET else _NO_BYTE)

    def _find(self) -> bool:
        """Find the newest earlier occurrence of the text's longest suffix in LENGTHS; False if there is none."""
        text, end = self._text, len(self._text)
        begin, kind = max(end - _REACH, 0), -1
        for length in LENGTHS:
            place = text.rfind(text[-length:], begin, end - 1) if end > length else -1
            if place < 0:
                break
            kind, self._place = kind + 1, place + length
        self._kind = kind
        return kind >= 0

    def draft(self, session: Session, pending: int, pick: Pick, needed: float) -> Draft:
        return self.following(needed)

    def following(self, needed: float) -> Draft:
        """Ids that may follow the text, as many as `draft` gives; no model is asked."""
        if not self._find():
            return NOTHING
        chance, longer = self._rates[2 * self._kind], self._rates[2 * self._kind + 1]
        if chance <= needed:
            return NOTHING
        count, expected = 0, 0.0
        while count < MOST_DRAFTED and chance > needed:
            count, chance, expected = count + 1, chance * longer, expected + chance
        return Draft([byte + OFFSET for byte in self._copied(self._place, count)], expected)

    def judge(self, drafted: int, accepted: int) -> None:
        for index in range(min(accepted + 1, drafted)):
            self._rates.add(2 * self._kind + (index > 0), index < accepted)

    def _copied(self, place: int, count: int) -> bytearray:
        """`count` bytes from `place` on; past the end of the text they repeat from `place`."""
        period = self._text[place : place + count]
        return (period * (count // len(period) + 1))[:count] if len(period) < count else period


DRAFTERS: dict[str, Callable[[AcceptanceRates], Drafter]] = {
    "patcher": PatcherDrafter,
    "decoder": DecoderDrafter,
    "heads": HeadsDrafter,
    "ngram": NgramDrafter,
}


def initial_rates(name: str) -> AcceptanceRates:
    """Initial acceptance rates of a drafter; for a smaller model, its own predicted probabilities."""
    if name == "ngram":
        return AcceptanceRates([rate for length in LENGTHS for rate in (1 - 2 / length, 1 - 1 / length)])
    return AcceptanceRates([(bin + 0.5) / _BINS for bin in range(_BINS)])
