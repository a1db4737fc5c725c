"""Generating with drafts: ids are guessed, checked by the model in one pass, and kept as far as they are right.

What is generated is what the model would have generated id by id: a guess is kept only where it is the id that the
sampler chooses from the model's own logits, with the chance numbers that belong to its place. So drafts change
neither a greedy text nor the distribution of a sampled one, nor what a seed gives.

How far to guess follows from what is measured on the way. Checking one more id costs a share of a pass by itself; it
saves such a pass if it is accepted. So a draft grows while the chance that all of it is right is above that share.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeblt.drafting import DRAFTERS
from edgeblt.errors import EdgebltError
from edgeblt.ids import EOS
from edgeblt.sampling import Sampler
from edgeblt.session import Session

NONE, AUTO = "none", "auto"
DRAFTS = (NONE, *DRAFTERS, AUTO)
_AUTOMATIC = ("ngram", "patcher")  # the first that has something to say
_LEAST_GAIN = 0.05  # chance by which an id must be likelier to be accepted than its check costs


@dataclass
class DraftCounts:
    """What became of the drafts of a text."""

    passes: int = 0  # of the model: every one gives an id of its own
    drafted: int = 0
    accepted: int = 0


class Costs:
    """Seconds of a pass by its number of ids: a straight line through what was measured, the newest counting most."""

    _KEPT = 0.98

    def __init__(self) -> None:
        # Sums of 1, n, n * n, t and n * t. To begin with, a pass of one id and one of five that take 1 and 2.2 units,
        # units so small that what is measured outweighs them.
        self._sums = np.array([2.0, 6.0, 26.0, 3.2, 12.0]) * 1e-6

    def add(self, count: int, seconds: float) -> None:
        self._sums *= self._KEPT
        self._sums += (1, count, count * count, seconds, count * seconds)

    @property
    def share(self) -> float:
        """What one more id adds, over a pass of one: 0.02 to 1."""
        ones, n, nn, t, nt = self._sums
        slope = (ones * nt - n * t) / max(ones * nn - n * n, 1e-18)
        single = (t - slope * n) / ones + slope
        return float(min(max(slope / single, 0.02), 1.0)) if single > 0 else 1.0


def check_draft(draft: str) -> None:
    """Raises EdgebltError for what is not one of DRAFTS."""
    if draft not in DRAFTS:
        raise EdgebltError(f"draft is {draft!r:.40}; use one of {', '.join(DRAFTS)}")


def generate_ids(
    session: Session, logits: NDArray[np.float32], sampler: Sampler, draft: str, most: int, counts: DraftCounts
) -> Iterator[int]:
    """Ids that follow the text the session has been fed, `logits` [vocab] being its last: at most `most`, up to EOS.

    The last one has not been fed. `draft` is one of DRAFTS.
    """
    speculation = _Speculation(session, sampler, draft, counts)
    left, pending = most, EOS
    chosen = [sampler.choose(logits)]
    while True:
        for pending in chosen[:left]:
            yield pending
            if pending == EOS:
                return
        left -= len(chosen)
        if left <= 0:
            return
        chosen = speculation.advance(pending, left)


class _Speculation:
    def __init__(self, session: Session, sampler: Sampler, draft: str, counts: DraftCounts) -> None:
        names = {NONE: (), AUTO: _AUTOMATIC}.get(draft, (draft,))
        if session.config.patcher is None:  # there is nobody to ask
            names = tuple(name for name in names if name != "patcher")
        self._session, self._sampler, self._counts = session, sampler, counts
        self._drafters = {name: DRAFTERS[name]() for name in names}
        self._costs = {name: Costs() for name in names}
        for id in session.ids.tolist():
            self._append(id)

    def advance(self, pending: int, most: int) -> list[int]:
        """The next ids, at least one: those of a draft that are right, and the one after them. `pending` is fed."""
        self._append(pending)
        began = time.perf_counter()
        name, drafted = self._draft(pending, most - 1)
        start = self._session.position
        rows = self._session.feed([pending, *drafted])
        self._measure(name, len(rows), time.perf_counter() - began)
        chosen = self._check(rows, drafted)
        accepted = len(chosen) - 1
        self._session.rollback(start + 1 + accepted)
        for id in chosen[:-1]:
            self._append(id)
        if name:
            self._drafters[name].judge(len(drafted), accepted)
        self._counts.passes += 1
        self._counts.drafted += len(drafted)
        self._counts.accepted += accepted
        return chosen

    def _append(self, id: int) -> None:
        for drafter in self._drafters.values():
            drafter.append(id)

    def _draft(self, pending: int, most: int) -> tuple[str | None, list[int]]:
        if most > 0:
            for name, drafter in self._drafters.items():
                needed = self._costs[name].share + _LEAST_GAIN
                drafted = drafter.draft(self._session, pending, self._pick, needed)
                if drafted:
                    return name, drafted[:most]
        return None, []

    def _measure(self, name: str | None, count: int, seconds: float) -> None:
        if name:
            self._costs[name].add(count, seconds)
        else:
            for costs in self._costs.values():
                costs.add(count, seconds)

    def _check(self, rows: NDArray[np.float32], drafted: list[int]) -> list[int]:
        chosen: list[int] = []
        for row, guess in zip(rows, [*drafted, None], strict=True):
            chosen.append(self._sampler.choose(row))
            if chosen[-1] != guess or guess == EOS:
                break
        return chosen

    def _pick(self, logits: NDArray[np.float32], ahead: int) -> tuple[int, float]:
        guess = self._sampler.foresee(logits, ahead)
        return guess, self._sampler.likelihood(logits, guess)
