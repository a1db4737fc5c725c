"""Cost and benefit of drafts, measured while a text is generated: seconds of passes, and ids they accept."""

from collections.abc import Sequence
from typing import NamedTuple

_NEW = 0.05  # weight of the newest measurement in an exponential mean
_DECAY = 0.98  # factor on the weight of all earlier measurements in the linear fit, per new one
_FIRST_START, _FIRST_ID = 0.1, 0.3  # assumed cost of a draft and of each id in it, in draft-free passes
_PRIOR_PASSES = 4.0  # weight of that assumption in the fit's intercept, in measured passes
_PRIOR_SQUARES = 20.0  # its weight in the slope, as a sum of squared deviations of the id counts from their mean
_OUTLIER = 4.0  # times the expected value: longer measurements, which another process delayed, are clipped
_PLAIN_EVERY = 48  # passes with drafts before a draft-free one is measured again
_FORGOTTEN_AFTER = 1024  # draft-free passes after which the measured costs of drafts are discarded
_TRIAL_PASSES = 4  # passes in a trial of one drafter
_TRIAL_INTERVAL = 160  # passes with the fastest drafter between two trials


class ExponentialMean:
    """Exponentially weighted mean; values far above it are clipped."""

    def __init__(self) -> None:
        self.value: float | None = None
        self._count = 0

    def add(self, value: float) -> None:
        self._count += 1
        if self.value is None:
            self.value = value
        else:
            self.value += max(_NEW, 1 / self._count) * (min(value, _OUTLIER * self.value) - self.value)


class LinearFit:
    """Exponentially weighted linear fit of the seconds of a pass to the number of drafted ids it checks."""

    def __init__(self) -> None:
        self._count = self._ids = self._squares = self._seconds = self._products = 0.0  # exponentially weighted sums

    def add(self, ids: float, seconds: float, plain: float) -> None:
        """Add a pass that checked `ids` drafted ids; `plain` is the seconds of a draft-free pass."""
        if self._count:
            start, more = self.fit(plain)
            seconds = min(seconds, _OUTLIER * (start + more * ids))
        self._count = _DECAY * self._count + 1
        self._ids = _DECAY * self._ids + ids
        self._squares = _DECAY * self._squares + ids * ids
        self._seconds = _DECAY * self._seconds + seconds
        self._products = _DECAY * self._products + ids * seconds

    def fit(self, plain: float) -> tuple[float, float]:
        """Intercept and slope of the fit, in seconds and seconds an id; the slope is never negative.

        An assumed cost acts as a prior: the first few measurements barely move the fit.
        """
        count, seconds = self._count + _PRIOR_PASSES, self._seconds + _PRIOR_PASSES * (1 + _FIRST_START) * plain
        mean, mean_ids = seconds / count, self._ids / count
        covariance, variance = self._products - self._ids * mean, self._squares - self._ids * mean_ids
        more = (covariance + _FIRST_ID * plain * _PRIOR_SQUARES) / (variance + _PRIOR_SQUARES)
        return mean - max(more, 0.0) * mean_ids, max(more, 0.0)


class BreakEven(NamedTuple):
    """Number of accepted ids at which a draft saves as much time as it costs: `per_draft + per_id * drafted ids`."""

    per_draft: float
    per_id: float


class PassCosts:
    """Measured seconds of draft-free passes, of passes that check a drafter's ids, and of a generated id."""

    def __init__(self) -> None:
        self._plain, self._generated = ExponentialMean(), ExponentialMean()
        self._fits: dict[str, LinearFit] = {}
        self._since_plain = self._since_draft = 0

    def add(self, name: str | None, drafted: float, generated: float, seconds: float) -> None:
        """Add a pass that generated `generated` ids; `seconds` include drafting.

        name: drafter of the `drafted` ids that the pass checked; None for a draft-free pass.
        """
        self._generated.add(seconds / generated)
        if name is None:
            self._plain.add(seconds)
            self._since_plain, self._since_draft = 0, self._since_draft + 1
            if self._since_draft > _FORGOTTEN_AFTER:
                self._fits.clear()
            return
        self._since_plain, self._since_draft = self._since_plain + 1, 0
        if drafted and self._plain.value is not None:
            self._fits.setdefault(name, LinearFit()).add(drafted, seconds, self._plain.value)

    def break_even(self, name: str) -> BreakEven | None:
        """Break-even of a draft by `name`; None when a draft-free pass must re-measure the baseline."""
        plain = self._plain.value
        if plain is None or self._generated.value is None or self._since_plain > _PLAIN_EVERY:
            return None
        value = min(self._generated.value, plain)
        start, more = self._fits.setdefault(name, LinearFit()).fit(plain)
        return BreakEven(max(start - plain, 0.0) / value, more / value)


class DraftSelector:
    """Selects the drafter with the fewest seconds a byte: tries each for a few passes, then keeps to the fastest."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)
        self._seconds = {name: ExponentialMean() for name in names}
        self._passes = 0
        self._last = ""

    def choose(self) -> str:
        """Name of the drafter to use in the next pass."""
        if len(self._names) == 1:
            return self._names[0]
        turn = self._passes // _TRIAL_PASSES
        if turn < len(self._names):
            return self._names[turn]
        best = self._best()
        others = [name for name in self._names if name != best]
        round_, since = divmod(self._passes - _TRIAL_PASSES * len(self._names), _TRIAL_INTERVAL + _TRIAL_PASSES)
        return best if since < _TRIAL_INTERVAL or not others else others[round_ % len(others)]

    def add(self, name: str, generated: int, seconds: float) -> None:
        """Add a pass that generated `generated` ids with drafts by `name`; a name that is not compared is ignored."""
        if name not in self._seconds:
            return
        self._passes += 1
        if name != self._last and name != self._best():  # a trial begins: older measurements are out of date
            self._seconds[name] = ExponentialMean()
        self._last = name
        self._seconds[name].add(seconds / generated)

    def _best(self) -> str:
        return min(self._names, key=lambda name: self._seconds[name].value or 0.0)
