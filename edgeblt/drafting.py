"""Drafts: guesses at the next ids that cost less than the model's own answer.

    patcher    the patcher reads every byte anyway, and its logits are a distribution of the next one
    decoder    encoder and decoder go on past the end of the open patch, as if it had none
    ngram      what followed the same few ids the last time

No guess changes what is generated: `speculation.py` checks all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgeblt.session import Session

MOST_DRAFTED = 24  # fewer than a session rolls back at once
LENGTHS = (16, 8, 6, 4)  # of the ids by which `ngram` recognises a place, the longest first
_ID_BITS = 9
_BINS = 8  # of probabilities, in which it is counted how often they were right

Pick = Callable[[NDArray[np.float32], int], tuple[int, float]]
"""The id to guess from logits [vocab] as the n-th after the pending one, and how likely these make it."""


@dataclass(frozen=True)
class Draft:
    ids: list[int]
    expected: float  # how many of them are thought to be kept


class Drafter(Protocol):
    """One way to guess, for one sequence."""

    def append(self, id: int) -> None:
        """The text has got another id."""

    def draft(self, session: Session, pending: int, pick: Pick, needed: float) -> Draft:
        """Ids that may follow `pending`, the text's newest id, which the session has not been fed.

        An id is guessed where the chance that it and all before it are right is above `needed`.
        """
        ...

    def judge(self, drafted: int, accepted: int) -> None:
        """How the last draft of `drafted` ids did."""


class _Stepwise:
    """Guesses one id after the other by logits of a smaller model, as long as it is sure enough of them."""

    def __init__(self) -> None:
        # How often guesses of about such a probability were tried and right; to begin with, as often as they say.
        self._tried = np.full(_BINS, 4.0)
        self._right = self._tried * (np.arange(_BINS) + 0.5) / _BINS
        self._bins: list[int] = []  # of the last draft

    def append(self, id: int) -> None:
        pass

    def judge(self, drafted: int, accepted: int) -> None:
        for index, place in enumerate(self._bins[: min(accepted + 1, drafted)]):
            self._tried[place] = 0.98 * self._tried[place] + 1
            self._right[place] = 0.98 * self._right[place] + (index < accepted)

    def _guess(
        self, step: Callable[[list[int]], NDArray[np.float32]], pending: int, pick: Pick, needed: float
    ) -> Draft:
        ids, chance, expected = [pending], 1.0, 0.0
        self._bins = []
        while len(ids) <= MOST_DRAFTED:
            chosen, probability = pick(step(ids), len(ids) - 1)
            place = min(int(probability * _BINS), _BINS - 1)
            chance *= float(self._right[place] / self._tried[place])
            if chance <= needed:
                break
            ids.append(chosen)
            expected += chance
            self._bins.append(place)
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
    """What followed the newest place in the text that ended in the same ids."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._keys = dict.fromkeys(LENGTHS, 0)  # of the newest ids, as one number
        self._places: dict[int, dict[int, int]] = {length: {} for length in LENGTHS}  # by key: the index after it
        self._right = {length: 1 - 1 / length for length in LENGTHS}  # chance of one more id
        self._length = LENGTHS[0]  # by which the last place was found

    def append(self, id: int) -> None:
        for length in LENGTHS:
            if self._ids:  # an n-gram is known once another id follows it, or every text would find itself
                self._places[length][self._keys[length]] = len(self._ids)
            self._keys[length] = (self._keys[length] << _ID_BITS | id) & ((1 << _ID_BITS * length) - 1)
        self._ids.append(id)

    def draft(self, session: Session, pending: int, pick: Pick, needed: float) -> Draft:
        for length in LENGTHS:
            place = self._places[length].get(self._keys[length]) if len(self._ids) >= length else None
            if place is not None:
                self._length = length
                count, chance, expected = 0, self._right[length], 0.0
                while count < MOST_DRAFTED and chance > needed:
                    count, chance, expected = count + 1, chance * self._right[length], expected + chance
                return Draft(self._following(place, count), expected)
        return Draft([], 0.0)

    def _following(self, place: int, count: int) -> list[int]:
        """As many ids from `place` on; where the text ends, it is as if it went on repeating itself from there."""
        period = self._ids[place:]
        return (period * (count // len(period) + 1))[:count] if len(period) < count else period[:count]

    def judge(self, drafted: int, accepted: int) -> None:
        right = self._right[self._length]
        for index in range(min(accepted + 1, drafted)):
            right += 0.1 * ((index < accepted) - right)
        self._right[self._length] = min(max(right, 0.05), 0.98)


DRAFTERS: dict[str, Callable[[], Drafter]] = {
    "patcher": PatcherDrafter,
    "decoder": DecoderDrafter,
    "ngram": NgramDrafter,
}
