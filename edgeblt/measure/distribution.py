"""Medians, spreads and percentiles of measurements over several runs."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Percentiles:
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Spread:
    """Lowest and highest value over the runs."""

    low: float
    high: float


def quantiles_ms(seconds: Iterable[NDArray[np.float64]]) -> tuple[float, ...]:
    """Quantiles, in milliseconds, of all times together at 0, 1, ... 100 percent."""
    return tuple(float(value) for value in np.percentile(np.concatenate(list(seconds)) * 1e3, range(101)))


def percentiles(quantiles: Sequence[float]) -> Percentiles:
    """Percentiles from quantiles at 0, 1, ... 100 percent."""
    return Percentiles(quantiles[50], quantiles[95], quantiles[99])


def median(values: Iterable[float]) -> float:
    return float(statistics.median(values))


def spread(values: Sequence[float]) -> Spread:
    return Spread(min(values), max(values))
