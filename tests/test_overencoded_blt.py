"""Byte Latent Transformers with over-encoding's n-gram tables: transformers' forward with the equations' input."""

from pathlib import Path

import pytest

import test_exactness
from overencoded_blts import over_encoded_blt
from sampled import mostly_slow

SEEDS = range(40)


@pytest.mark.parametrize("seed", mostly_slow(SEEDS, range(12)))
def test_any_way_of_feeding_equals_the_full_forward(seed: int, tmp_path: Path) -> None:
    """Chunks, rollbacks and forks."""
    test_exactness.test_any_way_of_feeding_equals_the_full_forward(lambda seed: over_encoded_blt(seed, tmp_path), seed)
