"""What drafts cost and bring, as measured while they are made."""

from collections.abc import Sequence

import numpy as np

_NEW = 0.1  # share of the newest measurement in a mean
_KEPT = 0.98  # of the weight of earlier measurements, in a line through them
_FIRST_GUESS = 0.3  # what one more id costs of a pass, before anything is known
_GUESS_WEIGHT = 20.0  # of that guess: as much as squares of ids' distances from their mean that add up to this
_OUTLIER = 4.0  # a measurement further above what is expected counts as if it were so far: something else took the time
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
    """Seconds of a pass by the ids it drafted: a straight line through what was measured, the newest counting most."""

    def __init__(self) -> None:
        self._sums = np.zeros(5)  # of 1, ids, ids squared, seconds, ids times seconds

    def add(self, drafted: int, seconds: float) -> None:
        if self._sums[0]:
            single, more = self.fit()
            seconds = min(seconds, _OUTLIER * (single + more * drafted))
        self._sums *= _KEPT
        self._sums += (1, drafted, drafted * drafted, seconds, drafted * seconds)

    def fit(self) -> tuple[float, float]:
        """Seconds of a pass of one id, and of one more id. Only after the first `add`."""
        count, ids, squares, seconds, products = self._sums.tolist()
        mean, mean_ids = seconds / count, ids / count
        guess = _FIRST_GUESS * mean / (1 + _FIRST_GUESS * mean_ids)
        covariance, variance = products - ids * mean, squares - ids * mean_ids
        more = (covariance + guess * _GUESS_WEIGHT) / (variance + _GUESS_WEIGHT)
        more = min(max(more, 0.0), mean / (1 + mean_ids))  # an id costs no more than a pass of its own
        return mean - more * mean_ids, more


class Costs:
    """Seconds of passes with each drafter's drafts, and of a generated id."""

    def __init__(self) -> None:
        self._generated = Mean()
        self._plain: list[float] = []  # until there is a line to add them to
        self._lines: dict[str, Line] = {}

    def add(self, name: str | None, drafted: int, generated: int, seconds: float) -> None:
        """A pass that checked ids drafted by `name`, None for one without; `seconds` are those of the draft too."""
        self._generated.add(seconds / generated)
        if name is not None:
            self._line(name).add(drafted, seconds)
            return
        self._plain = [*self._plain[-9:], seconds]
        for line in self._lines.values():
            line.add(0, seconds)

    def needed(self, name: str) -> float:
        """The chance from which on drafting another id is worth its time."""
        if self._generated.value is None or not self._plain:
            return 1.0  # the first pass has no draft: it is what others are compared with
        single, more = self._line(name).fit()
        return min(more / min(self._generated.value, single), 1.0) if more else 0.0

    def _line(self, name: str) -> Line:
        if name not in self._lines:
            line = self._lines[name] = Line()
            for seconds in self._plain:
                line.add(0, seconds)
        return self._lines[name]


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
        """A pass in the way `name` gave `generated` ids."""
        self._passes += 1
        if name != self._last and name != self._best():  # a trial begins: what was seen long ago says little
            self._seconds[name] = Mean()
        self._last = name
        self._seconds[name].add(seconds / generated)

    def _best(self) -> str:
        return min(self._names, key=lambda name: self._seconds[name].value or 0.0)
