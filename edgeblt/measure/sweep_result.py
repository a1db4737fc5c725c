"""Results of a sweep over recipes and settings: trials, the Pareto front, gains by part of the model."""

from collections.abc import Sequence
from dataclasses import dataclass

COMPLETE, STOPPED, OVER_BUDGET, REFUSED = "complete", "stopped early", "over budget", "refused"


@dataclass(frozen=True)
class SweepTrial:
    """One configuration and what was measured of it; None is not measured.

    `settings` are the choice for each part of the model, or recipe, threshold, provider and threads.
    """

    number: int
    state: str  # complete, stopped early, over budget, or refused
    settings: dict[str, str]
    bundle_bytes: int | None
    bits_per_byte: float | None
    decode_bytes_per_s: float | None
    device: str
    packaged: str  # the recipe of the package that it is, or empty
    reason: str  # why it was not completed, or empty

    @property
    def label(self) -> str:
        """The settings in words, the packaged recipe's name before them."""
        words = "; ".join(f"{name} {value}" for name, value in self.settings.items())
        return f"{self.packaged}: {words}" if self.packaged else words


@dataclass(frozen=True)
class Against:
    """The trial of fewest bits per byte among those at most as large as a recipe of the package."""

    packaged: str
    packaged_bits_per_byte: float
    packaged_bytes: int
    trial: int
    bits_per_byte: float
    bundle_bytes: int

    @property
    def sentence(self) -> str:
        gain = self.packaged_bits_per_byte - self.bits_per_byte
        if gain <= 0:
            return f"No trial of {self.packaged}'s size or less needs fewer bits per byte than it does."
        return (
            f"Trial {self.trial} needs {gain:.4f} bits per byte less than {self.packaged} "
            f"at {self.bundle_bytes / self.packaged_bytes:.1%} of its size."
        )


@dataclass(frozen=True)
class Sweep:
    """Field by field the JSON of `edgeblt sweep`.

    `front`: numbers of the trials that no other trial on the same device beats in size, bits per byte and speed, within
    the budgets. `sensitivity`: what a part's finest choice gains over the smallest recipe, in bits per byte.
    `importance`: the share of each setting in the differences of bits per byte (PED-ANOVA). Both may be empty.
    """

    study: str
    checkpoint: str  # its directory's name
    texts: dict[str, int]  # bytes by name
    at_most_bytes: int | None
    at_least_bytes_per_s: float | None
    trials: tuple[SweepTrial, ...]
    front: tuple[int, ...]
    against: tuple[Against, ...]
    sensitivity: dict[str, float]
    importance: dict[str, float]


def front_of(
    trials: Sequence[SweepTrial], at_most_bytes: int | None = None, at_least_bytes_per_s: float | None = None
) -> tuple[int, ...]:
    """Numbers of the complete trials on the Pareto front of their device, from the smallest bundle to the largest."""
    inside = [
        trial
        for trial in trials
        if trial.state == COMPLETE
        and _size(trial) <= (at_most_bytes or _size(trial))
        and _speed(trial) >= (at_least_bytes_per_s or 0)
    ]
    front = [trial for trial in inside if not any(_beats(other, trial) for other in inside)]
    return tuple(trial.number for trial in sorted(front, key=lambda trial: (_size(trial), trial.number)))


def against_packaged(trials: Sequence[SweepTrial]) -> tuple[Against, ...]:
    """For each complete recipe of the package, the best complete trial that is not larger."""
    complete = [trial for trial in trials if trial.state == COMPLETE]
    found = []
    for own in (trial for trial in complete if trial.packaged):
        best = min((other for other in complete if _size(other) <= _size(own)), key=_bits)
        found.append(Against(own.packaged, _bits(own), _size(own), best.number, _bits(best), _size(best)))
    return tuple({each.packaged: each for each in found}.values())


def _beats(one: SweepTrial, other: SweepTrial) -> bool:
    """Whether a trial on the same device is nowhere worse, and somewhere better."""
    if one.device != other.device:
        return False
    mine, theirs = ((_size(each), _bits(each), -_speed(each)) for each in (one, other))
    return mine != theirs and all(left <= right for left, right in zip(mine, theirs, strict=True))


def _size(trial: SweepTrial) -> int:
    assert trial.bundle_bytes is not None
    return trial.bundle_bytes


def _bits(trial: SweepTrial) -> float:
    assert trial.bits_per_byte is not None
    return trial.bits_per_byte


def _speed(trial: SweepTrial) -> float:
    assert trial.decode_bytes_per_s is not None
    return trial.decode_bytes_per_s
