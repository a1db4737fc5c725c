"""Removal of feed-forward channels: how many remain, and the layer's matrices without the others.

A channel is a row of `gate`, the same row of `up`, and the column of `down` that reads their product.
"""

import re

import numpy as np
from numpy.typing import NDArray

from edgeblt.errors import EdgebltError
from edgeblt.quant.formats.weight_format import Matrix

MULTIPLE = 64  # kept channels are a multiple, so that rows of `down` are whole blocks of up to so many

Channels = NDArray[np.int64]  # indices of the kept channels, ascending


def kept_percent(share: str) -> int:
    """ "75%" as 75. Raises EdgebltError."""
    if not re.fullmatch("[1-9][0-9]?%", share):
        raise EdgebltError(f"channels is {share!r:.40}; write the share that is kept, such as 75%")
    return int(share[:-1])


def kept_count(share: str, size: int) -> int:
    """Number of channels that remain: rounded up to a multiple of `MULTIPLE`, at most all."""
    return min(-(-size * kept_percent(share) // (100 * MULTIPLE)) * MULTIPLE, size)


def select(weight: Matrix, name: str, channels: Channels) -> Matrix:
    """The kept channels of a matrix of this canonical name."""
    return np.ascontiguousarray(weight[:, channels] if name.endswith(".down") else weight[channels])


def spread(weight: Matrix, name: str, channels: Channels, shape: tuple[int, ...]) -> Matrix:
    """The inverse of `select`: a matrix of `shape`, with zeros for the channels that are gone."""
    whole = np.zeros(shape, np.float32)
    whole[(slice(None), channels) if name.endswith(".down") else channels] = weight
    return whole
