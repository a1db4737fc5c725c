"""Results of a suite: each figure of a bundle beside the reference's, with an interval of the difference."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeblt.evaluation.intervals import CONFIDENCE, LEAST_UNITS, bootstrap_interval

BITS, ACCURACY, MARGIN = "bits per byte", "accuracy", "nats"
MOST_NAMED = 3  # figures in the verdict on a bundle


@dataclass(frozen=True)
class SuiteFigure:
    """A figure of a suite before it is measured: which items it is over, and its name.

    unit: `BITS`, less is better; `ACCURACY`, the share of probes answered right, or `MARGIN`, by how many nats the
        right answer is likelier than the likeliest wrong one: more is better.
    is_main: whether the verdict on the bundle rests on it. Figures over all texts are none, as a gain on one text,
        were it a language that the model cannot write, would hide the loss on another.
    """

    group: str
    name: str
    text: str  # a text's name; empty for a figure over all texts
    unit: str
    items: NDArray[np.int64]
    is_main: bool = False


@dataclass(frozen=True)
class ComparedFigure:
    """A figure of a bundle and of the reference on the same items, in the unit's own direction.

    `low` and `high` end the confidence interval of `difference`, the bundle's figure less the reference's; `units` is
    how many pieces of text, documents or probes were resampled, `items` how many texts or answers were scored.
    `differs`: whether 0 is outside an interval that is so much wider that all those of main figures are right
    together with the report's confidence (Bonferroni); the verdict on the bundle rests on it, that on the figure on
    its own interval.
    """

    group: str
    name: str
    text: str  # a text's name; empty for a figure over all texts
    unit: str
    is_main: bool
    items: int
    units: int
    reference: float
    value: float
    difference: float
    low: float
    high: float
    differs: bool
    verdict: str


@dataclass(frozen=True)
class SuiteReport:
    """Field by field the JSON of `edgeblt validate --suite`, for one bundle."""

    suite: str
    bundle: str  # the directory's name
    bundle_id: str
    recipe: str
    bundle_bytes: int
    provider: str
    device: str
    threshold: float | None  # None: the bundle's own
    reference: str  # name of the bundle or checkpoint compared with
    reference_recipe: str
    is_quick: bool
    seed: int
    resamples: int
    confidence: float
    texts: tuple[str, ...]
    bytes: int  # scored by each model
    figures: tuple[ComparedFigure, ...]
    verdict: str


def compared_figures(
    figures: Sequence[SuiteFigure],
    units: NDArray[np.int64],
    weights: NDArray[np.float64],
    reference: NDArray[np.float64],
    values: NDArray[np.float64],
    reference_name: str,
    seed: int,
) -> tuple[ComparedFigure, ...]:
    """Each figure that rests on at least `LEAST_UNITS` units.

    units, weights, reference, values: [n], one for each item of the suite: the unit that it is resampled with, its
        weight in means (bytes, or 1), and both models' values: bits, right answers or nats.
    """
    tried = [figure for figure in figures if len(np.unique(units[figure.items])) >= LEAST_UNITS]
    joint = 1 - (1 - CONFIDENCE) / max(sum(figure.is_main for figure in tried), 1)
    compared = []
    for figure in tried:
        _, own = np.unique(units[figure.items], return_inverse=True)
        weight = weights[figure.items]
        theirs, ours = reference[figure.items], values[figure.items]
        differences, sizes = (np.bincount(own, part).astype(np.float64) for part in (ours - theirs, weight))
        mean = float(differences.sum() / sizes.sum())
        if figure.unit == ACCURACY:
            differences, sizes = _with_one_each_way(differences, sizes)
        interval = bootstrap_interval(differences, sizes, seed)
        wider = bootstrap_interval(differences, sizes, seed, confidence=joint)
        compared.append(
            ComparedFigure(
                figure.group,
                figure.name,
                figure.text,
                figure.unit,
                figure.is_main,
                len(own),
                int(own.max()) + 1,
                float(theirs.sum() / weight.sum()),
                float(ours.sum() / weight.sum()),
                mean,
                interval.low,
                interval.high,
                not wider.low <= 0 <= wider.high,
                verdict(figure.unit, mean, interval.low, interval.high, reference_name),
            )
        )
    return tuple(compared)


def _with_one_each_way(
    differences: NDArray[np.float64], sizes: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The units, one more that is lost and one more that is gained (after Agresti and Min, Statistics in Medicine 24).

    Where few answers differ, and all one way, resampling alone would call that certain: three of three are chance in
    one case of four.
    """
    return np.append(differences, [-1.0, 1.0]), np.append(sizes, [1.0, 1.0])


def verdict(unit: str, difference: float, low: float, high: float, reference: str) -> str:
    """A verdict in words: `indistinguishable from fp32` where the interval holds 0, else what is lost or gained."""
    if math.isnan(difference):
        return "not finite"
    if low <= 0 <= high:
        return f"indistinguishable from {reference}"
    is_worse = (difference > 0) == (unit == BITS)
    return f"{'costs' if is_worse else 'gains'} {amount(unit, abs(difference))}"


def amount(unit: str, value: float) -> str:
    """A difference in words: bits per byte, percentage points, or nats."""
    if unit == ACCURACY:
        return f"{100 * value:.1f} points"
    return f"{value:.4f} {unit}" if value >= 5e-5 else f"{value:.1e} {unit}"


def overall_verdict(figures: Sequence[ComparedFigure], reference: str) -> str:
    """The verdict on a bundle, from its main figures: what those cost that differ, losses first, or that none does."""
    differing = [figure for figure in figures if figure.is_main and figure.differs]
    if not differing:
        return f"indistinguishable from {reference}"
    differing.sort(key=lambda figure: figure.verdict.startswith("gains"))
    named = [f"{', '.join(filter(None, (figure.text, figure.name)))}: {figure.verdict}" for figure in differing]
    more = len(named) - MOST_NAMED
    return "; ".join(named[:MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")
