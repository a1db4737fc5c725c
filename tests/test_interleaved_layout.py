"""The interleaved layout of dense weights: literal bytes, and the place of every number for matrices of any size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeblt.quant.formats.interleaved_layout import (
    interleave_codes,
    interleave_scales,
    interleave_zero_points,
    same_zero_points,
)
from edgeblt.quant.formats.weight_format import BLOCK_SIZES

sizes = st.tuples(st.integers(1, 50), st.integers(1, 4), st.sampled_from(BLOCK_SIZES))  # rows, blocks, block size


def test_literal_bytes_of_eight_bits() -> None:
    """Row r and column c hold 16 * r + c: four columns of each row in turn."""
    codes = np.arange(256, dtype=np.uint8).reshape(16, 1, 16)
    stored = interleave_codes(codes, 8)
    assert stored.shape == (1, 1, 256)
    assert stored.tobytes()[:12].hex(" ") == "00 01 02 03 10 11 12 13 20 21 22 23"
    assert stored.tobytes()[60:72].hex(" ") == "f0 f1 f2 f3 04 05 06 07 14 15 16 17"
    assert stored.tobytes()[-4:].hex(" ") == "fc fd fe ff"


def test_literal_bytes_of_four_bits() -> None:
    """Columns 0 to 3 of a run of eight are the low halves, columns 4 to 7 the high ones."""
    codes = np.stack([np.arange(16), 15 - np.arange(16)]).astype(np.uint8).reshape(2, 1, 16)
    stored = interleave_codes(codes, 4)
    assert stored.shape == (1, 1, 128)
    assert stored.tobytes()[:12].hex(" ") == "40 51 62 73 bf ae 9d 8c 00 00 00 00"
    assert stored.tobytes()[64:76].hex(" ") == "c8 d9 ea fb 37 26 15 04 00 00 00 00"


def test_literal_scales_and_zero_points() -> None:
    scales = np.arange(1, 35, dtype=np.float16).reshape(17, 2)
    stored = interleave_scales(scales)
    assert stored.shape == (2, 2, 16)
    assert stored[0].tolist() == [list(range(1, 33, 2)), list(range(2, 34, 2))]
    assert stored[1].tolist() == [[33] + [0] * 15, [34] + [0] * 15]
    points = np.arange(16, dtype=np.uint8)[:, None]
    assert interleave_zero_points(points, 8).tobytes().hex(" ") == "00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f"
    assert interleave_zero_points(points, 4).tobytes().hex(" ") == "80 91 a2 b3 c4 d5 e6 f7"
    assert (same_zero_points(8).tolist(), same_zero_points(4).tolist()) == ([128], [8 + (8 << 4)])


@pytest.mark.parametrize("bits", [4, 8])
@given(size=sizes, seed=st.integers(0, 1 << 32))
def test_every_number_is_in_its_place(bits: int, size: tuple[int, int, int], seed: int) -> None:
    rows, blocks, block_size = size
    chance = np.random.default_rng(seed)
    codes = chance.integers(0, 1 << bits, size, dtype=np.uint8)
    points = chance.integers(0, 1 << bits, (rows, blocks), dtype=np.uint8)
    stored = interleave_codes(codes, bits)
    stored_points = interleave_zero_points(points, bits)
    groups = -(-rows // 16)
    assert stored.shape == (groups, blocks, 2 * block_size * bits)
    assert stored_points.shape == (groups, blocks, 2 * bits)
    for row, block, column in zip(*(chance.integers(0, end, 50) for end in size), strict=True):
        run, place = divmod(column, 32 // bits)
        byte = stored[row // 16, block, run * 64 + row % 16 * 4 + place % 4]
        assert (byte >> (place // 4 * 4) if bits == 4 else byte) & ((1 << bits) - 1) == codes[row, block, column]
        byte = stored_points[row // 16, block, row % 16 if bits == 8 else row % 8]
        shift = row % 16 // 8 * 4 if bits == 4 else 0
        assert byte >> shift & ((1 << bits) - 1) == points[row, block]
