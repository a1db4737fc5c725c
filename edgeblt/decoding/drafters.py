"""Drafts: guesses at the next ids that cost less than the model's own answer.

    patcher    the patcher reads every byte anyway, and its logits are a distribution of the next one
    decoder    encoder and decoder go on past the end of the open patch, as if it had none
    ngram      what followed the same few bytes the last time

No guess changes what is generated: `speculation.py` checks all of them.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeblt.ids import OFFSET
from edgeblt.runtime.session import Session

MOST_DRAFTED = 24  # fewer than a session rolls back at once
LENGTHS = (4, 6, 8, 16)  # of the bytes by which `ngram` recognises a place
_NO_BYTE = 0xFF  # stands for ids that stand for none; UTF-8 has no such byte
_REACH = 8192  # bytes of text that are searched, the newest ones: more takes as long as a pass of a small model
_BINS = 8  # of probabilities, by which it is counted how often a guess was right

Pick = Callable[[NDArray[np.float32], int], tuple[int, float]]
"""The id to guess from logits [vocab] as the n-th after the pending one, and how likely these make it."""


class Draft(NamedTuple):
    ids: list[int]
    expected: float  # how many of them are thought to be kept


NOTHING = Draft([], 0.0)


class Rates:
    """How often guesses of each kind were right, the newest counting most; a model keeps them from text to text."""

    _FIRST_WEIGHT = 4.0  # guesses that the rates to begin with are worth
    _KEPT = 0.98

    def __init__(self, first: Sequence[float]) -> None:
        self._tried = [self._FIRST_WEIGHT] * len(first)
        self._right = [self._FIRST_WEIGHT * rate for rate in first]

    def __getitem__(self, kind: int) -> float:
        return self._right[kind] / self._tried[kind]

    def add(self, kind: int, right: bool) -> None:
        self._tried[kind] = self._KEPT * self._tried[kind] + 1
        self._right[kind] = self._KEPT * self._right[kind] + right


class Drafter(Protocol):
    """One way to guess, for one sequence."""

    def extend(self, ids: Sequence[int]) -> None:
        """The text has got more ids."""

    def knows(self) -> bool:
        """Whether there is anything to say here."""
        ...

    def draft(self, session: Session, pending: int, pick: Pick, needed: float) -> Draft:
        """Ids that may follow `pending`, the text's newest id, which the session has not been fed.

        An id is guessed where the chance that it and all before it are right is above `needed`.
        """
        ...

    def judge(self, drafted: int, accepted: int) -> None:
        """How the last draft of `drafted` ids did."""


class _Stepwise:
    """Guesses one id after the other by logits of a smaller model, as long as it is sure enough of them."""

    def __init__(self, rates: Rates) -> None:
        self._rates = rates
        self._bins: list[int] = []  # of the last draft

    def extend(self, ids: Sequence[int]) -> None:
        pass

    def knows(self) -> bool:
        return True

    def judge(self, drafted: int, accepted: int) -> None:
        for index, kind in enumerate(self._bins[: min(accepted + 1, drafted)]):
            self._rates.add(kind, index < accepted)

    def _guess(
        self, step: Callable[[list[int]], NDArray[np.float32]], pending: int, pick: Pick, needed: float
    ) -> Draft:
        ids, chance, expected = [pending], 1.0, 0.0
        self._bins = []
        while len(ids) <= MOST_DRAFTED:
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
    """What the patcher finds likeliest. Its reading is not lost where the guess is right."""

    def draft(self, session: Session, pending: int, pick: Pick, needed: float) -> Draft:
        return self._guess(session.read_ahead, pending, pick, needed)


class DecoderDrafter(_Stepwise):
    """What encoder and decoder find likeliest with the latents there are."""

    def draft(self, session: Session, pending: int, pick: Pick, needed: float) -> Draft:
        with session.within_patch() as feed:
            return self._guess(lambda ids: feed(ids[-1]), pending, pick, needed)


class NgramDrafter:
    """What followed the newest place in the text that ended in the same bytes, as many as are found.

    Rates are by the length that was recognised: of the first byte, and of each that follows right ones.
    """

    def __init__(self, rates: Rates) -> None:
        self._rates = rates
        self._text = bytearray()
        self._kind = 0  # which length found the last place
        self._place = 0  # the index after it

    def extend(self, ids: Sequence[int]) -> None:
        for id in ids:
            self._text.append(id - OFFSET if id >= OFFSET else _NO_BYTE)

    def knows(self) -> bool:
        """Finds the newest place that ends as the text does."""
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
        """From the place that `knows` has found."""
        chance, longer = self._rates[2 * self._kind], self._rates[2 * self._kind + 1]
        if chance <= needed:
            return NOTHING
        count, expected = 0, 0.0
        while count < MOST_DRAFTED and chance > needed:
            count, chance, expected = count + 1, chance * longer, expected + chance
        return Draft([byte + OFFSET for byte in self._following(self._place, count)], expected)

    def judge(self, drafted: int, accepted: int) -> None:
        for index in range(min(accepted + 1, drafted)):
            self._rates.add(2 * self._kind + (index > 0), index < accepted)

    def _following(self, place: int, count: int) -> bytearray:
        """As many bytes from `place` on; where the text ends, it is as if it went on repeating itself from there."""
        period = self._text[place : place + count]
        return (period * (count // len(period) + 1))[:count] if len(period) < count else period


DRAFTERS: dict[str, Callable[[Rates], Drafter]] = {
    "patcher": PatcherDrafter,
    "decoder": DecoderDrafter,
    "ngram": NgramDrafter,
}


def first_rates(name: str) -> Rates:
    """What is thought of a drafter's guesses before any was checked: of smaller models what they say themselves."""
    if name == "ngram":
        return Rates([rate for length in LENGTHS for rate in (1 - 2 / length, 1 - 1 / length)])
    return Rates([(bin + 0.5) / _BINS for bin in range(_BINS)])
