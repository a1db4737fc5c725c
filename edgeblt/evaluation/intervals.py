"""Bootstrap confidence intervals of a mean over units that are resampled whole, such as pieces of text or probes.

The intervals are bias-corrected and accelerated (Efron and Tibshirani, An Introduction to the Bootstrap, section 14.3),
and expanded for few units by the ratio of Student's quantile to the normal one (Hesterberg, What Teachers Should Know
About the Bootstrap, section 4.3), without which they would be too narrow.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from edgeblt.measure.noise import uniform_draws

CONFIDENCE = 0.95
RESAMPLES = 2000
LEAST_UNITS = 4
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its confidence interval, in the unit of the values."""

    mean: float
    low: float
    high: float


def bootstrap_interval(
    values: NDArray[np.float64],
    weights: NDArray[np.float64],
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Interval of sum(values) / sum(weights), where units are drawn with replacement.

    values, weights: float64 [n], sums over each of n >= LEAST_UNITS units; weights are positive.
    seed: the same seed gives the same interval, on every machine and with every numpy.

    Values that are all in the same ratio to their weights have an interval of no width. NaN gives NaN.
    """
    assert len(values) == len(weights) >= LEAST_UNITS
    mean = float(values.sum() / weights.sum())
    if not np.isfinite(values).all():
        return Interval(float("nan"), float("nan"), float("nan"))
    drawn = resampled_means(values, weights, seed, resamples)
    if np.ptp(values / weights) == 0:
        return Interval(mean, mean, mean)
    below = (np.sum(drawn < mean) + np.sum(drawn <= mean)) / (2 * resamples)
    bias = _NORMAL.inv_cdf(float(np.clip(below, 0.5 / resamples, 1 - 0.5 / resamples)))
    acceleration = _acceleration(values, weights)
    ends = []
    for sign in (-1, 1):
        shifted = bias + sign * expanded_quantile(len(values), confidence)
        level = _NORMAL.cdf(bias + shifted / (1 - acceleration * shifted))
        ends.append(float(np.quantile(drawn, level)))
    return Interval(mean, ends[0], ends[1])


def resampled_means(
    values: NDArray[np.float64], weights: NDArray[np.float64], seed: int, resamples: int
) -> NDArray[np.float64]:
    """Means [resamples] of units drawn with replacement, as many as there are."""
    count = len(values)
    chosen = (uniform_draws(resamples * count, seed) * count).astype(np.int64).reshape(resamples, count)
    means: NDArray[np.float64] = values[chosen].sum(axis=1) / weights[chosen].sum(axis=1)
    return means


def expanded_quantile(count: int, confidence: float = CONFIDENCE) -> float:
    """Half the width of the interval of a mean of `count` values, in standard deviations of resampled means.

    Student's quantile is expanded around the normal one (Abramowitz and Stegun, 26.7.5): right to 1% from 4 values on.
    """
    z, freedom = _NORMAL.inv_cdf((1 + confidence) / 2), count - 1
    student = z + (z**3 + z) / (4 * freedom)
    student += (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    student += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    return float(student * (count / freedom) ** 0.5)


def _acceleration(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Skewness of the mean, from the means without each unit in turn."""
    without = (values.sum() - values) / (weights.sum() - weights)
    deviations = without.mean() - without
    spread = float((deviations**2).sum())
    return float((deviations**3).sum() / (6 * spread**1.5)) if spread > 0 else 0.0
