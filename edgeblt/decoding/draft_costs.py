"""What drafts cost and bring, as measured while they are made."""

from collections.abc import Sequence
from typing import NamedTuple

_NEW = 0.05  # share of the newest measurement in a mean
_KEPT = 0.98  # of the weight of earlier measurements, in a line through them
_FIRST_START, _FIRST_ID = 0.1, 0.3  # what a draft, and each id in it, are thought to cost of a pass at first
_GUESSES = 4.0  # passes that guess is worth as to where the line starts,
_GUESS_WEIGHT = 20.0  # and as to its slope: squares of ids' distances from their mean that add up to this
_OUTLIER = 4.0  # a measurement further above what is expected counts as if it were so far: something else took the time
_PLAIN_EVERY = 48  # passes with drafts, after which one without is measured again
_FORGOTTEN_AFTER = 1024  # passes without drafts, after which what drafts cost may have changed
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
        self._count = self._ids = self._squares = self._seconds = self._products = 0.0  # sums

    def add(self, ids: int, seconds: float, plain: float) -> None:
        """`plain` is what a pass takes that checks none."""
        if self._count:
            start, more = self.fit(plain)
            seconds = min(seconds, _OUTLIER * (start + more * ids))
        self._count = _KEPT * self._count + 1
        self._ids = _KEPT * self._ids + ids
        self._squares = _KEPT * self._squares + ids * ids
        self._seconds = _KEPT * self._seconds + seconds
        self._products = _KEPT * self._products + ids * seconds

    def fit(self, plain: float) -> tuple[float, float]:
        """Where the line starts, and what an id adds: not less than nothing.

        Few measurements leave it near a first guess, so it is drawn through that too.
        """
        count, seconds = self._count + _GUESSES, self._seconds + _GUESSES * (1 + _FIRST_START) * plain
        mean, mean_ids = seconds / count, self._ids / count
        covariance, variance = self._products - self._ids * mean, self._squares - self._ids * mean_ids
        more = (covariance + _FIRST_ID * plain * _GUESS_WEIGHT) / (variance + _GUESS_WEIGHT)
        return mean - max(more, 0.0) * mean_ids, max(more, 0.0)


class Price(NamedTuple):
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
            self._lines.setdefault(name, Line()).add(drafted, seconds, self._plain.value)

    def price(self, name: str) -> Price | None:
        """Of a draft by `name`; None where a pass without any is due, to know what those take now."""
        plain = self._plain.value
        if plain is None or self._generated.value is None or self._since_plain > _PLAIN_EVERY:
            return None
        value = min(self._generated.value, plain)
        start, more = self._lines.setdefault(name, Line()).fit(plain)
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
        if len(self._names) == 1:
            return self._names[0]
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
