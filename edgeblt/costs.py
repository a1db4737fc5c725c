"""What drafts cost and bring, as measured while they are made."""

from collections.abc import Sequence

_NEW = 0.1  # share of the newest measurement in a mean
_FIRST_GUESS = 0.3  # what one more id costs of a pass, before anything is known
_OUTLIER = 4.0  # a measurement further above its mean counts as if it were so far: something else took the time
_TRIED = 4  # passes of a trial
_KEPT_TO = 160  # passes between trials


class Mean:
    """Of what was measured, the newest counting most."""

    def __init__(self) -> None:
        self.value: float | None = None

    def add(self, value: float) -> None:
        if self.value is None:
            self.value = value
        else:
            self.value += _NEW * (min(value, _OUTLIER * self.value) - self.value)


class Costs:
    """Seconds of a pass of one id, of one more id in a draft, and of a generated id."""

    def __init__(self) -> None:
        self._single, self._generated = Mean(), Mean()
        self._more: dict[str, Mean] = {}

    def add_plain(self, seconds: float) -> None:
        """A pass of one id."""
        self._single.add(seconds)
        self._generated.add(seconds)

    def add_drafted(self, name: str, drafted: int, generated: int, seconds: float) -> None:
        """A pass that checked ids drafted by `name`; `seconds` are those of the draft too."""
        self._generated.add(seconds / generated)
        if drafted and self._single.value is not None:
            more = max(seconds - self._single.value, 0.0) / drafted
            self._more.setdefault(name, Mean()).add(min(more, self._single.value))

    def needed(self, name: str) -> float:
        """The chance from which on drafting another id is worth its time."""
        if self._single.value is None or self._generated.value is None:
            return 1.0  # the first pass has no draft: it is what others are compared with
        mean = self._more.get(name)
        more = _FIRST_GUESS * self._single.value if mean is None or mean.value is None else mean.value
        return min(more / min(self._generated.value, self._single.value), 1.0)


class Trials:
    """Which of several ways takes the least time for a byte: each is tried, and the best kept to for a while."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)
        self._seconds = {name: Mean() for name in names}
        self._passes = 0

    def choose(self) -> str:
        """The one to use now."""
        turn = self._passes // _TRIED
        if turn < len(self._names):
            return self._names[turn]
        best = min(self._names, key=lambda name: self._seconds[name].value or 0.0)
        others = [name for name in self._names if name != best]
        round_, since = divmod(self._passes - _TRIED * len(self._names), _KEPT_TO + _TRIED)
        return best if since < _KEPT_TO or not others else others[round_ % len(others)]

    def add(self, name: str, generated: int, seconds: float) -> None:
        """A pass in the way `name` gave `generated` ids."""
        self._passes += 1
        self._seconds[name].add(seconds / generated)
