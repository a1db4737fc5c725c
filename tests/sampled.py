"""Tests of many configurations: some of them in every run of the suite, the others in `make slow`."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def mostly_slow(values: Iterable[Any], keep: Collection[Any]) -> list[Any]:
    """For `parametrize`: all values, of which those outside `keep` are slow; a tuple is one value for each name."""
    every = list(values)
    assert all(value in every for value in keep), "what is kept must be there"
    each = [(value if isinstance(value, tuple) else (value,), value in keep) for value in every]
    return [pytest.param(*parts, marks=() if kept else pytest.mark.slow) for parts, kept in each]
