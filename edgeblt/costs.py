"""What drafts cost and bring, as measured while they are made."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_NEW = 0.05  # share of the newest measurement in a mean
_KEPT = 0.98  # of the weight of earlier measurements, in a line through them
_FIRST_GUESS = 0.3  # what one more id costs of a pass, before anything is known
_GUESS_WEIGHT = 20.0  # of that guess: as much as squares of ids' distances from their mean that add up to this
_OUTLIER = 4.0  # a measurement further above what is expected counts as if it were so far: something else took the time
_PLAIN_EVERY = 48  # passes with drafts, after which one without is measured again
_FORGOTTEN_AFTER = 256  # passes without drafts, after which what drafts cost may have changed
_TRIED = 4  # passes of a trial
_KEPT_TO = 160  # passes between trials


class Mean:
    """Of what was measured, the newest counting most."""

    def __init__(self) -> None:
        self.value: float | None = None
        self._count = 0

    def add(self, value: float) -> None:
        self._count += 1
        if self.value is None:
            self.value = value
        else:
            self.value += max(_NEW, 1 / self._count) * (min(value, _OUTLIER * self.value) - self.value)


class Line:
    """Seconds of a pass by the ids it checks: a straight line through what was measured, the newest counting most."""

    def __init__(self) -> None:
        self._sums = np.zeros(5)  # of 1, ids, ids squared, seconds, ids times seconds

    def add(self, ids: int, seconds: float, slope: float) -> None:
        """`slope` is what an id is thought to take before it is known."""
        if self._sums[0]:
            start, more = self.fit(slope)
            seconds = min(seconds, _OUTLIER * (start + more * ids))
        self._sums *= _KEPT
        self._sums += (1, ids, ids * ids, seconds, ids * seconds)

    def fit(self, slope: float) -> tuple[float, float]:
        """Where the line starts, and what an id adds: not less than nothing. Only after the first `add`."""
        count, ids, squares, seconds, products = self._sums.tolist()
        mean, mean_ids = seconds / count, ids / count
        covariance, variance = products - ids * mean, squares - ids * mean_ids
        more = max((covariance + slope * _GUESS_WEIGHT) / (variance + _GUESS_WEIGHT), 0.0)
        return mean - more * mean_ids, more


@dataclass(frozen=True)
class Price:
    """What a draft must bring to be worth its time, in ids that are kept."""

    start: float  # for a draft at all
    id: float  # for each id in it


class Costs:
    """Seconds of passes without drafts, with each drafter's drafts, and of a generated id."""

    def __init__(self) -> None:
        self._plain, self._generated = Mean(), Mean()
        self._lines: dict[str, Line] = {}
        self._since_plain = self._since_draft = 0

    def add(self, name: str | None, drafted: int, generated: int, seconds: float) -> None:
        """A pass that checked ids drafted by `name`, None for one without; `seconds` are those of the draft too."""
        self._generated.add(seconds / generated)
        if name is None:
            self._plain.add(seconds)
            self._since_plain, self._since_draft = 0, self._since_draft + 1
            if self._since_draft > _FORGOTTEN_AFTER:
                self._lines.clear()
            return
        self._since_plain, self._since_draft = self._since_plain + 1, 0
        if drafted and self._plain.value is not None:
            self._lines.setdefault(name, Line()).add(drafted, seconds, _FIRST_GUESS * self._plain.value)

    def price(self, name: str) -> Price | None:
        """Of a draft by `name`; None where a pass without any is due, to know what those take now."""
        plain = self._plain.value
        if plain is None or self._generated.value is None or self._since_plain > _PLAIN_EVERY:
            return None
        value = min(self._generated.value, plain)
        if name not in self._lines:
            return Price(0.0, _FIRST_GUESS)
        start, more = self._lines[name].fit(_FIRST_GUESS * plain)
        return Price(max(start - plain, 0.0) / value, more / value)


class Trials:
    """Which of several ways takes the least time for a byte: each is tried, and the best kept to for a while."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)
        self._seconds = {name: Mean() for name in names}
        self._passes = 0
        self._last = ""

    def choose(self) -> str:
        """The one to use now."""
        turn = self._passes // _TRIED
        if turn < len(self._names):
            return self._names[turn]
        best = self._best()
        others = [name for name in self._names if name != best]
        round_, since = divmod(self._passes - _TRIED * len(self._names), _KEPT_TO + _TRIED)
        return best if since < _KEPT_TO or not others else others[round_ % len(others)]

    def add(self, name: str, generated: int, seconds: float) -> None:
        """A pass in the way `name` gave `generated` ids; only those that are compared count."""
        if name not in self._seconds:
            return
        self._passes += 1
        if name != self._last and name != self._best():  # a trial begins: what was seen long ago says little
            self._seconds[name] = Mean()
        self._last = name
        self._seconds[name].add(seconds / generated)

    def _best(self) -> str:
        return min(self._names, key=lambda name: self._seconds[name].value or 0.0)
