"""Bootstrap intervals: coverage by simulation, and the same figures as scipy where it is there."""

import math

import numpy as np
import pytest

from edgeblt.evaluation.intervals import bootstrap_interval, expanded_quantile, resampled_means
from sampled import mostly_slow


def test_the_mean_is_weighted() -> None:
    """Bits over bytes: a long piece counts more."""
    interval = bootstrap_interval(np.array([10.0, 4.0, 2.0, 8.0]), np.array([5.0, 1.0, 1.0, 5.0]))
    assert interval.mean == 24 / 12 and interval.low < 2 < interval.high
    assert interval.low >= 8 / 5 and interval.high <= 4  # no resampled mean is outside the units' own


def test_equal_units_leave_no_doubt() -> None:
    interval = bootstrap_interval(np.array([0.5, 1.0, 1.5, 2.0]), np.array([1.0, 2.0, 3.0, 4.0]))
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.5, 0.5)
    none = bootstrap_interval(np.zeros(9), np.ones(9))
    assert (none.mean, none.low, none.high) == (0, 0, 0)


def test_what_is_not_finite_stays_so() -> None:
    for value in (math.nan, math.inf):
        interval = bootstrap_interval(np.array([1.0, 2.0, 3.0, value]), np.ones(4))
        assert all(map(math.isnan, (interval.mean, interval.low, interval.high)))


def test_the_seed_decides() -> None:
    values, weights = np.arange(12.0) ** 2, np.ones(12)
    assert bootstrap_interval(values, weights, 3) == bootstrap_interval(values, weights, 3)
    assert bootstrap_interval(values, weights, 3) != bootstrap_interval(values, weights, 4)


def test_resampled_means_by_hand() -> None:
    """Each is a mean of four of the units, and the whole of them spreads as a mean of four does."""
    values = np.array([0.0, 1.0, 10.0, 100.0])
    means = resampled_means(values, np.ones(4), 0, 4000)
    possible = {(a + b + c + d) / 4 for a in values for b in values for c in values for d in values}
    assert set(means.tolist()) <= possible and len(set(means.tolist())) > 30
    spread = values.std() / 2
    assert abs(means.mean() - values.mean()) < 6 * spread / 4000**0.5
    assert abs(means.std() / spread - 1) < 0.1


@pytest.mark.parametrize("count", [4, 5, 8, 24, 300])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.995])
def test_the_expansion_for_few_units(count: int, confidence: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    exact = stats.t.ppf((1 + confidence) / 2, count - 1) * (count / (count - 1)) ** 0.5
    assert expanded_quantile(count, confidence) == pytest.approx(exact, rel=0.15 if confidence > 0.99 else 0.02)
    assert expanded_quantile(count, confidence) <= exact * 1.001  # never wider than it should be


@pytest.mark.parametrize("skewed", [False, True])
def test_as_scipy_has_it(skewed: bool) -> None:
    """scipy's bias-corrected and accelerated interval, at the confidence that the expansion comes to."""
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(5)
    values = generator.exponential(size=40) if skewed else generator.normal(size=40)
    weights = generator.uniform(1, 3, 40)
    confidence = float(2 * stats.norm.cdf(expanded_quantile(40)) - 1)
    theirs = stats.bootstrap(
        (values, weights), lambda v, w, axis: v.sum(axis) / w.sum(axis), paired=True, vectorized=True,
        n_resamples=20_000, confidence_level=confidence, method="BCa", random_state=generator,
    )  # fmt: skip
    ours = bootstrap_interval(values, weights, resamples=20_000)
    scale = theirs.standard_error
    assert abs(ours.low - theirs.confidence_interval.low) < 0.1 * scale
    assert abs(ours.high - theirs.confidence_interval.high) < 0.1 * scale


CASES = [(8, False), (8, True), (24, False), (24, True), (100, True)]


@pytest.mark.parametrize(("count", "skewed"), mostly_slow(CASES, keep=[(8, False), (24, True)]))
def test_coverage(count: int, skewed: bool) -> None:
    """In 800 experiments the interval holds the true difference in 95 of 100, within 3: chance alone makes 0.8."""
    generator, experiments, held = np.random.default_rng(11), 800, 0
    for number in range(experiments):
        weights = generator.integers(200, 257, count).astype(float)
        noise = generator.gamma(4.0, size=count) - 4.0 if skewed else generator.normal(0, 2, count)
        interval = bootstrap_interval((0.01 + 0.002 * noise) * weights, weights, number)
        held += interval.low <= 0.01 <= interval.high
    assert abs(held / experiments - 0.95) < 0.03, held / experiments
