"""Generating with drafts: ids are guessed, checked by the model in one pass, and kept as far as they are right.

What is generated is what the model would have generated id by id: a guess is kept only where it is the id that the
sampler chooses from the model's own logits, with the chance numbers that belong to its place. So drafts change
neither a greedy text nor the distribution of a sampled one, nor what a seed gives.

Whether and how far to guess follows from what is measured on the way (`costs.py`): another id is worth its check where
the chance that it is kept, times what a byte takes now, is more than what drafting and checking it takes. A model keeps
what it has learned so from one text to the next.
"""

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgeblt.arguments import shown
from edgeblt.decoding.draft_costs import Costs, Trials
from edgeblt.decoding.drafters import DRAFTERS, Drafter, first_rates
from edgeblt.decoding.sampling import Sampler
from edgeblt.errors import EdgebltError
from edgeblt.ids import OFFSET
from edgeblt.runtime.session import Session

NONE: Final = "none"
AUTO: Final = "auto"
NGRAM: Final = "ngram"
PATCHER: Final = "patcher"
DECODER: Final = "decoder"
DRAFTS = (NONE, *DRAFTERS, AUTO)
_STANDS_FOR: dict[str, tuple[str, ...]] = {NONE: (), AUTO: tuple(DRAFTERS)}


@dataclass
class DraftCounts:
    """What became of the drafts of a text."""

    passes: int = 0  # of the model: every one gives an id of its own
    drafted: int = 0
    accepted: int = 0


class Experience:
    """What drafts of one kind have cost and brought on one model so far, by a clock that tells seconds, or the like."""

    def __init__(
        self, draft: str, usable: Collection[str] = tuple(DRAFTERS), clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """`draft` is one of DRAFTS; of the drafters it stands for only those that are `usable` are asked."""
        self.clock = clock
        self.names = tuple(name for name in _STANDS_FOR.get(draft, (draft,)) if name in usable)
        self.rates = {name: first_rates(name) for name in self.names}
        smaller_models = [name for name in self.names if name != NGRAM]
        self.costs = Costs()
        self.trials = Trials([*([NONE] if draft == AUTO or not smaller_models else []), *smaller_models])


def check_draft(draft: object) -> None:
    """Raises EdgebltError for what is not one of DRAFTS."""
    if not isinstance(draft, str) or draft not in DRAFTS:
        raise EdgebltError(f"draft is {shown(draft)}; use one of {', '.join(DRAFTS)}")


def generate_ids(
    session: Session,
    logits: NDArray[np.float32],
    sampler: Sampler,
    experience: Experience,
    most: int,
    counts: DraftCounts | None = None,
) -> Iterator[int]:
    """Ids that follow the text the session has been fed, `logits` [vocab] being its last: at most `most`.

    They end with one of the sampler's `ends`, if it comes. The last one has not been fed. `experience` says how to
    draft. Raises EdgebltError where the model fails (`Sampler.choose`).
    """
    left, pending = most, 0
    chosen = [sampler.choose(logits)]
    speculation = _Speculation(session, sampler, experience, counts or DraftCounts()) if most > 1 else None
    while True:
        for pending in chosen[:left]:
            yield pending
            if pending in sampler.ends:
                return
        left -= len(chosen)
        if left <= 0 or speculation is None:
            return
        chosen = speculation.advance(pending, left)


class _Speculation:
    """`auto` looks for a repetition first; where there is none, it tries the smaller models, and keeps to the best."""

    def __init__(self, session: Session, sampler: Sampler, experience: Experience, counts: DraftCounts) -> None:
        self._session, self._sampler, self._counts = session, sampler, counts
        self._costs, self._trials, self._clock = experience.costs, experience.trials, experience.clock
        self._drafters: dict[str, Drafter] = {name: DRAFTERS[name](rates) for name, rates in experience.rates.items()}
        self._asked_first = [NGRAM] if NGRAM in self._drafters else []
        self._extend(session.ids.tolist())

    def advance(self, pending: int, most: int) -> list[int]:
        """The next ids, at least one: those of a draft that are right, and the one after them. `pending` is fed."""
        self._counts.passes += 1
        if not self._drafters:
            return [self._sampler.choose(self._session.feed([pending])[0])]
        self._extend([pending])
        began = self._clock()
        name, drafted = self._draft(pending, most - 1)
        start = self._session.position
        rows = self._session.feed([pending, *drafted])
        seconds = self._clock() - began
        chosen = self._check(rows, drafted)
        if drafted:
            self._judge(name, drafted, chosen, start + len(chosen))
        plain = not drafted and name != DECODER  # what the patcher reads, it would have read anyway
        self._costs.add(None if plain else name, len(drafted), len(chosen), seconds)
        self._trials.add(name, len(chosen), seconds)
        return chosen

    def _judge(self, name: str, drafted: list[int], chosen: list[int], position: int) -> None:
        """After a draft was checked: back to where it was right."""
        accepted = len(chosen) - 1
        self._session.rollback(position)
        self._extend(chosen[:-1])
        self._drafters[name].judge(len(drafted), accepted)
        self._counts.drafted += len(drafted)
        self._counts.accepted += accepted

    def _draft(self, pending: int, most: int) -> tuple[str, list[int]]:
        """What the first drafter says that has something worth its check; else who took time to say nothing."""
        asked = NONE
        for name in (*self._asked_first, self._trials.choose()):
            if name == NONE or not most or not self._drafters[name].knows():
                continue
            price = self._costs.price(name)
            if price is None:
                continue
            draft = self._drafters[name].draft(self._session, pending, self._pick, price.id)
            asked = asked if name == NGRAM else name  # it takes none
            if draft.ids and draft.expected - price.id * len(draft.ids) >= price.start:
                return name, draft.ids[:most]
        return asked, []

    def _extend(self, ids: list[int]) -> None:
        for drafter in self._drafters.values():
            drafter.extend(ids)

    def _check(self, rows: NDArray[np.float32], drafted: list[int]) -> list[int]:
        chosen: list[int] = []
        for row, guess in zip(rows, [*drafted, None], strict=True):
            chosen.append(self._sampler.choose(row))
            if chosen[-1] != guess or guess in self._sampler.ends:
                break
        return chosen

    def _pick(self, logits: NDArray[np.float32], ahead: int) -> tuple[int, float]:
        try:
            guess = self._sampler.foresee(logits, ahead)
        except EdgebltError:  # a drafter's own logits fail: nothing is lost but the guess
            return OFFSET, 0.0
        return guess, self._sampler.likelihood(logits, guess)
