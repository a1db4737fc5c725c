"""Linear formats: literal bytes, and a bound in float64 that holds for any matrix."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from checkpoint_oracle import assert_one_sentence
from edgeblt.errors import EdgebltError
from edgeblt.quant.formats.weight_format import (
    BLOCK_SIZES,
    Codebook,
    Floating,
    Linear,
    Quantized,
    concatenate,
    pack,
    quantize,
    stored_scales,
    to_blocks,
    unpack,
)

LARGEST_FLOAT16 = 65504.0
FLOAT32_ROUNDING = 1 + 2.0**-20  # a quotient in float32 decides which level is nearest

linear_formats = st.builds(
    Linear, bits=st.sampled_from([4, 8]), block_size=st.sampled_from([None, *BLOCK_SIZES]), symmetric=st.booleans()
)
magnitudes = st.sampled_from([0.0, 1e-45, 1e-39, 1e-12, 6e-8, 1e-4, 1.0, 3.0, 500.0, 50_000.0])


@st.composite
def matrices(draw: st.DrawFn) -> NDArray[np.float32]:
    """[rows, columns] of stretches of very different sizes: zeros, constants, one sign, denormal, huge ratios."""
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 300))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    matrix = rng.standard_normal((rows, columns)).clip(-3, 3)
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, columns - 1))
        stretch = matrix[draw(st.integers(0, rows - 1)), start : start + draw(st.integers(1, 100))]
        kind, magnitude = draw(st.sampled_from(["scaled", "constant", "one sign"])), draw(magnitudes)
        if kind == "scaled":
            stretch *= magnitude
        elif kind == "constant":
            stretch[:] = magnitude * draw(st.sampled_from([1, -1]))
        else:
            stretch[:] = np.abs(stretch) * magnitude * draw(st.sampled_from([1, -1]))
    return matrix.clip(-400_000, 400_000).astype(np.float32)  # seven steps that float16 holds


def by_column(parameters: NDArray[Any], format: Linear, columns: int) -> NDArray[np.float64]:
    """float64 [rows, columns] of what a block shares, one column at a time."""
    block = format.block_size or columns
    return np.stack([parameters[:, column // block].astype(np.float64) for column in range(columns)], axis=1)


def restored(quantized: Quantized) -> NDArray[np.float64]:
    """What the codes stand for: (code - zero_point) * scale."""
    columns = quantized.codes.shape[1]
    scales = by_column(quantized.scales, quantized.format, columns)
    return (quantized.codes - by_column(quantized.zero_points, quantized.format, columns)) * scales


@settings(deadline=None)
@given(matrices(), linear_formats)
def test_no_element_moves_by_more_than_half_a_step(weight: NDArray[np.float32], format: Linear) -> None:
    quantized = quantize(weight, format)
    columns = weight.shape[1]
    assert quantized.codes.dtype == np.uint8 and quantized.codes.shape == weight.shape
    assert quantized.codes.max(initial=0) < 2**format.bits and quantized.zero_points.max(initial=0) < 2**format.bits
    blocks = -(-columns // (format.block_size or columns))
    assert quantized.scales.dtype == np.float16 and quantized.scales.shape == (len(weight), blocks)
    assert quantized.zero_points.dtype == np.uint8 and quantized.zero_points.shape == (len(weight), blocks)
    if format.symmetric:
        assert (quantized.zero_points == 2 ** (format.bits - 1)).all()
    steps = by_column(quantized.scales, format, columns)
    assert (steps > 0).all() and np.isfinite(steps).all()
    error = np.abs(restored(quantized) - weight.astype(np.float64))
    assert (error <= steps / 2 * FLOAT32_ROUNDING).all(), (error / steps).max()
    assert (restored(quantized)[weight == 0] == 0).all()


@settings(deadline=None)
@given(matrices(), linear_formats)
def test_dequantize_is_what_the_codes_stand_for(weight: NDArray[np.float32], format: Linear) -> None:
    """A code times a float16 scale has at most 19 bits, so float32 holds it exactly."""
    quantized = quantize(weight, format)
    dequantized = quantized.dequantize()
    assert dequantized.dtype == np.float32
    np.testing.assert_array_equal(dequantized, restored(quantized))


@settings(deadline=None)
@given(matrices(), st.sampled_from([4, 8]), st.booleans(), st.sampled_from([16, 32, 64, 256]))
def test_a_scale_is_no_larger_than_it_must_be(
    weight: NDArray[np.float32], bits: int, symmetric: bool, block_size: int
) -> None:
    """The range that the levels span is the block's own, but for a step of float16."""
    quantized = quantize(weight, Linear(bits, block_size, symmetric))
    for row in range(len(weight)):
        for block in range(quantized.scales.shape[1]):
            values = weight[row, block * block_size : (block + 1) * block_size].astype(np.float64)
            extent = np.abs(values).max() if symmetric else max(values.max(), 0) - min(values.min(), 0)
            needed = extent / (2 ** (bits - 1) - 1 if symmetric else 2**bits - 1)
            scale = np.float16(quantized.scales[row, block])
            largest = needed * (1 + 2.0**-10) + 2.0**-24  # a step of normal numbers, or of the denormal ones
            assert scale <= largest or (needed < 2.0**-149 and scale == 1)


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(0, 33), st.integers(0, 2**32))
def test_packing_and_back(rows: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for bits in (4, 8):
        codes = rng.integers(0, 2**bits, (2, rows, count), np.uint8)
        packed = pack(codes, bits)
        assert packed.dtype == np.uint8 and packed.shape == (2, rows, -(-count * bits // 8))
        np.testing.assert_array_equal(unpack(packed, bits, count), codes)


def test_packed_bytes() -> None:
    codes = np.array([[1, 2, 3], [15, 0, 9]], np.uint8)
    assert pack(codes, 4).tobytes() == b"\x21\x03\x0f\x09"
    assert pack(codes, 8).tobytes() == b"\x01\x02\x03\x0f\x00\x09"
    assert unpack(np.frombuffer(b"\x21\x03\x0f\x09", np.uint8).reshape(2, 2), 4, 3).tolist() == codes.tolist()


def test_a_symmetric_block_of_four_bits() -> None:
    """Extreme -14 of 7 steps: scale 2, zero at code 8; 5 lies between levels 4 and 6 and goes to the even code."""
    weight = np.array([[0, 2, -2, 4, -14, 14, 12, 5, 7, -1, 1, 0.9, -0.9, 1.1, -13, 3]], np.float32)
    quantized = quantize(weight, Linear(4, 16, symmetric=True))
    assert quantized.scales.tobytes() == b"\x00\x40"  # 2.0 as a float16
    assert quantized.zero_points.tolist() == [[8]]
    assert quantized.codes.tolist() == [[8, 9, 7, 10, 1, 15, 14, 10, 12, 8, 8, 8, 8, 9, 2, 10]]
    assert pack(quantized.codes, 4).tobytes() == bytes.fromhex("98a7f1ae8c8898a2")


def test_an_asymmetric_block_of_four_bits() -> None:
    """From -1 to 6.5 in 15 steps of 0.5, zero at code 2."""
    weight = np.array([[-1, 6.5, 0, 0.5, -0.5, 1, 2, 3, 3.2, 3.3, 6, 6.2, 6.3, -0.2, -0.3, 4]], np.float32)
    quantized = quantize(weight, Linear(4, 16, symmetric=False))
    assert quantized.scales.tobytes() == b"\x00\x38"  # 0.5 as a float16
    assert quantized.zero_points.tolist() == [[2]]
    assert quantized.codes.tolist() == [[0, 15, 2, 3, 1, 4, 6, 8, 8, 9, 14, 14, 15, 2, 1, 10]]
    assert pack(quantized.codes, 4).tobytes() == bytes.fromhex("f032418698ee2fa1")


def test_rows_of_eight_bits() -> None:
    """Each row a scale: 127 steps of 1, then of 2; the range below is one step longer, and unused."""
    weight = np.array([[0, 1, -127], [254, -254, 3.5]], np.float32)
    quantized = quantize(weight, Linear(8, None, symmetric=True))
    assert quantized.scales.tobytes() == b"\x00\x3c\x00\x40"
    assert quantized.zero_points.tolist() == [[128], [128]]
    assert quantized.codes.tolist() == [[128, 129, 1], [255, 1, 130]]


def test_scales_are_rounded_away_from_zero() -> None:
    scales = np.array([1, 1 + 2**-12, -1 - 2**-12, 0, 1e-30, LARGEST_FLOAT16], np.float32)
    expected = [1, 1 + 2**-10, -1 - 2**-10, 1, 2**-24, LARGEST_FLOAT16]
    assert stored_scales(scales).tolist() == expected


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("largest", [LARGEST_FLOAT16 * 256, 1e30, 3.4e38])
def test_values_too_large_for_a_scale(largest: float, symmetric: bool) -> None:
    weight = np.array([[largest, 0, -largest]], np.float32)
    with pytest.raises(EdgebltError, match="too large for float16; keep this stage in fp32") as refused:
        quantize(weight, Linear(8, None, symmetric))
    assert_one_sentence(str(refused.value))


def test_the_largest_values_that_fit() -> None:
    weight = np.array([[LARGEST_FLOAT16 * 127, 1.0, -LARGEST_FLOAT16 * 127]], np.float32)
    dequantized = quantize(weight, Linear(8, None, symmetric=True)).dequantize()
    np.testing.assert_array_equal(dequantized, [[weight[0, 0], 0, weight[0, 2]]])


@settings(deadline=None)
@given(matrices(), matrices(), linear_formats)
def test_concatenated_matrices(first: NDArray[np.float32], second: NDArray[np.float32], format: Linear) -> None:
    columns = min(first.shape[1], second.shape[1])
    parts = [np.ascontiguousarray(matrix[:, :columns]) for matrix in (first, second)]
    joined = concatenate([quantize(part, format) for part in parts])
    whole = quantize(np.concatenate(parts), format)
    for one, other in ((joined.codes, whole.codes), (joined.scales, whole.scales)):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(joined.zero_points, whole.zero_points)


def test_blocks_are_filled_up_with_zeros() -> None:
    blocks = to_blocks(np.arange(1, 11, dtype=np.float32).reshape(2, 5), 3)
    assert blocks.tolist() == [[[1, 2, 3], [4, 5, 0]], [[6, 7, 8], [9, 10, 0]]]


def test_descriptions() -> None:
    assert Floating(16).describe() == "fp16"
    assert Codebook("nf4").describe() == "nf4, blocks of 64"
    assert Linear(8, None, True).describe() == "int8, one block a row, symmetric"
    assert Linear(4, 32, False, input_block_size=16).describe() == "int4, blocks of 32, inputs in 16"


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ({"bits": 5}, "5 bits"),
        ({"block_size": 24}, "block size 24"),
        ({"block_size": 512}, "block size 512"),
        ({"block_size": 0}, "block size 0"),
        ({"input_block_size": 8}, "input block size 8"),
    ],
)
def test_formats_that_do_not_exist(arguments: dict[str, Any], value: str) -> None:
    with pytest.raises(EdgebltError, match=f"{value}.*; use ") as refused:
        Linear(**({"bits": 4, "block_size": 32, "symmetric": True} | arguments))
    assert_one_sentence(str(refused.value))
