"""Layout of dense matrices for `edgeblt::DenseMatMul`: sixteen rows side by side.

A kernel computes sixteen outputs at a time, each in a 32-bit lane of a vector, and reads what follows in order:

    codes        [groups, blocks, 16 * block_size * bits / 8]: for each run of columns 16 rows x 4 bytes
                 8 bits: a run is four columns, a byte each
                 4 bits: a run is eight columns, byte j holds column j in its low half and column 4 + j in its high half
    scales       [groups, scales of a row, 16]
    zero_points  [groups, blocks, 16 * bits / 8]
                 8 bits: a byte each
                 4 bits: byte j holds that of row j in its low half and that of row 8 + j in its high half

A group is sixteen rows; zeros fill up the last one, of which the scales matter. native/kernels.h and docs/kernels.md
describe the same bytes from the kernels' side.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeblt.bundle.contract import GROUP
from edgeblt.quant.formats.weight_format import Codes, Scales


def interleave_codes(codes: Codes, bits: int) -> Codes:
    """The stored codes of [rows, blocks, block_size]."""
    groups, (_, blocks, block_size) = _groups(codes), codes.shape
    run = 32 // bits
    runs = groups.reshape(-1, GROUP, blocks, block_size // run, run).transpose(0, 2, 3, 1, 4)
    joined = runs if bits == 8 else runs[..., :4] | runs[..., 4:] << np.uint8(4)
    return joined.reshape(-1, blocks, GROUP * block_size * bits // 8)


def interleave_scales(scales: Scales) -> Scales:
    """The stored scales of [rows, scales of a row]."""
    return _side_by_side(scales)


def interleave_zero_points(zero_points: Codes, bits: int) -> Codes:
    """The stored zero points of [rows, blocks]."""
    points = _side_by_side(zero_points)
    return points if bits == 8 else points[..., :8] | points[..., 8:] << np.uint8(4)


def same_zero_points(bits: int) -> Codes:
    """uint8 [1]: what stands for the zero points of a symmetric format, all of them the middle of the codes."""
    return np.array([{8: 0x80, 4: 0x88}[bits]], np.uint8)


def _side_by_side(values: NDArray[Any]) -> NDArray[Any]:
    """[rows, n] to [groups, n, 16]."""
    return np.ascontiguousarray(_groups(values).transpose(0, 2, 1))


def _groups(values: NDArray[Any]) -> NDArray[Any]:
    """[rows, ..] to [groups, 16, ..], zeros behind the last row."""
    missing = -len(values) % GROUP
    filling = np.zeros((missing, *values.shape[1:]), values.dtype)
    whole = np.concatenate([values, filling]) if missing else values
    return whole.reshape(-1, GROUP, *values.shape[1:])
