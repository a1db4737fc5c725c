"""How codes are chosen: what a method promises to minimise, measured in float64 against the simpler method."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from numpy.typing import NDArray

from checkpoint_oracle import assert_one_sentence
from edgeblt.errors import EdgebltError
from edgeblt.quant.formats.weight_format import Linear, Matrix, Quantized, encode, quantize
from edgeblt.quant.methods.data_free import METHODS, quantize_least_squares
from edgeblt.quant.methods.gptq import Inputs, Products, gptq
from test_formats import by_column, linear_formats, matrices, restored

# Least squares compares the errors of its candidates in float32, so a near-tie can go the other way.
FLOAT32_SUMS = 1 + 1e-4
LINEAR = Linear(4, 32, symmetric=False)


def squared_errors(quantized: Quantized, weight: Matrix) -> NDArray[np.float64]:
    """float64 [rows, blocks]: each block's sum of squared differences."""
    columns = weight.shape[1]
    starts = range(0, columns, quantized.format.block_size or columns)
    squares = np.square(restored(quantized) - weight.astype(np.float64))
    return np.add.reduceat(squares, list(starts), axis=1)


def check_codes(quantized: Quantized, weight: Matrix) -> None:
    format, (rows, columns) = quantized.format, weight.shape
    blocks = -(-columns // (format.block_size or columns))
    assert quantized.codes.dtype == quantized.zero_points.dtype == np.uint8
    assert quantized.codes.shape == weight.shape and quantized.codes.max() < 2**format.bits
    assert quantized.scales.shape == quantized.zero_points.shape == (rows, blocks)
    assert quantized.zero_points.max() < 2**format.bits
    assert quantized.scales.dtype == np.float16
    assert np.isfinite(quantized.scales).all() and (quantized.scales != 0).all()
    if format.symmetric:  # not stored
        assert (quantized.zero_points == 2 ** (format.bits - 1)).all()


@settings(deadline=None)
@given(matrices(), linear_formats)
def test_least_squares_is_never_worse_than_nearest(weight: Matrix, format: Linear) -> None:
    chosen = quantize_least_squares(weight, format)
    check_codes(chosen, weight)
    nearest, least = squared_errors(quantize(weight, format), weight), squared_errors(chosen, weight)
    # Squares of denormal numbers vanish in float32: there every candidate looks as good as the best.
    vanishing = weight.shape[1] * 2.0**-126
    assert (least <= nearest * FLOAT32_SUMS + vanishing).all(), (least / nearest).max()
    assert (restored(chosen)[weight == 0] == 0).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_least_squares_is_better_on_normal_weights(bits: int, symmetric: bool) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    format = Linear(bits, 64, symmetric)
    least, nearest = (squared_errors(method(weight, format), weight) for method in (quantize_least_squares, quantize))
    assert least.sum() < 0.96 * nearest.sum()  # 0.69 to 0.94 was measured


def test_least_squares_uses_the_longer_side() -> None:
    """Of 16 symmetric levels eight lie below zero: a negative scale turns them to these values' longer side."""
    weight, format = np.arange(-7, 9, dtype=np.float32)[None], Linear(4, 16, symmetric=True)
    chosen = quantize_least_squares(weight, format)
    assert -1.01 < chosen.scales[0, 0] < -0.99
    assert squared_errors(chosen, weight) < squared_errors(quantize(weight, format), weight) / 20
    mirrored = quantize_least_squares(-weight, format)
    np.testing.assert_array_equal(mirrored.scales, -chosen.scales)
    np.testing.assert_array_equal(mirrored.codes, chosen.codes)


def dependent_inputs(rng: np.random.Generator, columns: int, count: int) -> NDArray[np.float64]:
    """[count, columns] of a few hidden causes, each column with its own size, and some noise."""
    causes = rng.standard_normal((count, max(columns // 4, 1)))
    mixed = causes @ rng.standard_normal((causes.shape[1], columns)) + 0.1 * rng.standard_normal((count, columns))
    sized: NDArray[np.float64] = mixed * np.exp(rng.standard_normal(columns))
    return sized


def without_drift(gram: torch.Tensor) -> Inputs:
    return Inputs(Products(gram, torch.zeros_like(gram)))


def gram_of(inputs: NDArray[np.float64]) -> Inputs:
    """Of inputs that the rounded model makes as the exact one does."""
    return without_drift(torch.from_numpy(inputs.T @ inputs))


def output_error(quantized: Quantized, weight: Matrix, inputs: NDArray[np.float64]) -> float:
    return float(np.square(inputs @ (restored(quantized) - weight.astype(np.float64)).T).sum())


formats_by_name = {
    "int4": LINEAR,
    "int4-symmetric": Linear(4, 32, symmetric=True),
    "int4-row": Linear(4, None, symmetric=False),
    "int8": Linear(8, 64, symmetric=True),
    "int4-large-blocks": Linear(4, 256, symmetric=False),
}


# Below, at and beyond the 128 inputs of a batch; multiples of a block and not.
@pytest.mark.parametrize("columns", [1, 7, 32, 100, 128, 129, 200, 300])
@pytest.mark.parametrize("format", formats_by_name.values(), ids=formats_by_name)
def test_gptq_on_inputs_that_do_not_correlate_rounds(format: Linear, columns: int) -> None:
    """With nothing to make up for errors with, each code is the nearest one on the grid of least squares."""
    rng = np.random.default_rng(columns)
    weight = rng.standard_normal((9, columns)).astype(np.float32)
    chosen = gptq(weight, without_drift(torch.diag(torch.from_numpy(rng.uniform(0.1, 50, columns)))), format)
    grid = quantize_least_squares(weight, format)
    check_codes(chosen, weight)
    np.testing.assert_array_equal(chosen.scales, grid.scales)
    np.testing.assert_array_equal(chosen.zero_points, grid.zero_points)
    scales, zero_points = (by_column(each, format, columns) for each in (grid.scales, grid.zero_points))
    expected = np.clip(np.rint(weight / scales) + zero_points, 0, format.levels - 1)
    np.testing.assert_array_equal(chosen.codes, expected)


@pytest.mark.parametrize("columns", [20, 64, 128, 150, 300])
@pytest.mark.parametrize("format", formats_by_name.values(), ids=formats_by_name)
@pytest.mark.parametrize("seed", [0, 1])
def test_gptq_is_better_on_inputs_that_correlate(format: Linear, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((24, columns)).astype(np.float32)
    inputs = dependent_inputs(rng, columns, 4 * columns)
    chosen, grid = gptq(weight, gram_of(inputs), format), quantize_least_squares(weight, format)
    check_codes(chosen, weight)
    np.testing.assert_array_equal(chosen.scales, grid.scales)
    # 0.009 to 0.029 was measured.
    assert output_error(chosen, weight, inputs) < 0.1 * output_error(grid, weight, inputs)


def test_gptq_as_written_in_the_paper() -> None:
    """Algorithm 1 in float64 numpy, one column at a time: the inverse is taken anew after each."""
    rng, columns = np.random.default_rng(3), 140
    weight = rng.standard_normal((6, columns)).astype(np.float32)
    inputs = dependent_inputs(rng, columns, 500)
    gram = inputs.T @ inputs
    chosen = gptq(weight, without_drift(torch.from_numpy(gram)), LINEAR)
    scales, zero_points = (by_column(each, LINEAR, columns) for each in (chosen.scales, chosen.zero_points))
    remaining = list(np.argsort(-np.diag(gram)))
    damped = gram + 0.01 * np.diag(gram).mean() * np.eye(columns)
    left, codes = weight.astype(np.float64), np.zeros(weight.shape)
    while remaining:
        column = remaining[0]
        inverse = np.linalg.inv(damped[np.ix_(remaining, remaining)])
        scale, zero_point = scales[:, column], zero_points[:, column]
        codes[:, column] = np.clip(np.rint(left[:, column] / scale) + zero_point, 0, 15)
        error = left[:, column] - (codes[:, column] - zero_point) * scale
        left[:, remaining] -= np.outer(error / inverse[0, 0], inverse[0])
        remaining = remaining[1:]
    np.testing.assert_array_equal(chosen.codes, codes)


def test_gptq_with_inputs_that_say_little() -> None:
    """None at all, one, the same twice, some always zero, very large and very small ones."""
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((5, 70)).astype(np.float32)
    few = rng.standard_normal((3, 70))
    twice = np.repeat(rng.standard_normal((200, 35)), 2, axis=1)
    partly = rng.standard_normal((200, 70)) * (np.arange(70) % 3 == 0)
    for inputs in (np.zeros((4, 70)), few[:1], few, twice, partly, 1e12 * few, 1e-12 * few, np.ones((9, 70))):
        chosen = gptq(weight, gram_of(inputs), LINEAR)
        check_codes(chosen, weight)
        simpler = quantize_least_squares(weight, LINEAR)
        assert output_error(chosen, weight, inputs) <= output_error(simpler, weight, inputs)


def test_gptq_of_zeros_and_of_one_row() -> None:
    rng = np.random.default_rng(6)
    products = gram_of(dependent_inputs(rng, 40, 100))
    assert not gptq(np.zeros((3, 40), np.float32), products, LINEAR).dequantize().any()
    one = rng.standard_normal((1, 40)).astype(np.float32)
    three = np.concatenate([one, one * 2, one])
    np.testing.assert_array_equal(gptq(three, products, LINEAR).codes[0], gptq(one, products, LINEAR).codes[0])


def test_gptq_leaves_its_arguments_alone() -> None:
    rng = np.random.default_rng(7)
    weight, inputs = rng.standard_normal((4, 50)).astype(np.float32), gram_of(dependent_inputs(rng, 50, 90))
    before = weight.copy(), inputs.factor.clone(), inputs.correction.clone()
    gptq(weight, inputs, LINEAR)
    np.testing.assert_array_equal(weight, before[0])
    assert torch.equal(inputs.factor, before[1]) and torch.equal(inputs.correction, before[2])


def test_products_add_up() -> None:
    """In parts, over more columns than are made at a time; float32 inputs, so their products are exact in float64."""
    rng = np.random.default_rng(9)
    rounded, exact = (rng.integers(-9, 10, (30, 700)).astype(np.float32) for _ in range(2))
    products = Products.zeros(700)
    for part in (slice(0, 7), slice(7, 30)):
        products.add(torch.from_numpy(rounded[part]), torch.from_numpy(exact[part]))
    wide, wanted = rounded.astype(np.float64), exact.astype(np.float64)
    np.testing.assert_array_equal(products.gram, wide.T @ wide)
    np.testing.assert_array_equal(products.drift, (wanted - wide).T @ wide)


@pytest.mark.parametrize("format", formats_by_name.values(), ids=formats_by_name)
def test_gptq_makes_up_for_errors_in_its_inputs(format: Linear) -> None:
    """What counts is the product with the inputs as they are, against that of the weights with the exact ones."""
    rng, columns = np.random.default_rng(8), 96
    weight = rng.standard_normal((16, columns)).astype(np.float32)
    exact = dependent_inputs(rng, columns, 800)
    # Errors that depend on the inputs, as those of rounded weights do.
    seen = exact @ (np.eye(columns) + 0.02 * rng.standard_normal((columns, columns)))
    drift = torch.from_numpy((exact - seen).T @ seen)
    wanted = exact @ weight.astype(np.float64).T

    def error(inputs: Inputs) -> float:
        return float(np.square(seen @ restored(gptq(weight, inputs, format)).T - wanted).sum())

    # 0.0001 to 0.003 was measured.
    assert error(Inputs(Products(torch.from_numpy(seen.T @ seen), drift))) < 0.02 * error(gram_of(seen))


@pytest.mark.parametrize("largest", [2e6, 3e38])
def test_values_too_large_for_a_scale(largest: float) -> None:
    weight = np.array([[largest, -largest, 1.0]], np.float32)
    with pytest.raises(EdgebltError, match="too large for float16") as refused:
        quantize_least_squares(weight, LINEAR)
    assert_one_sentence(str(refused.value))
    with pytest.raises(EdgebltError, match="too large for float16"):
        gptq(weight, without_drift(torch.eye(3, dtype=torch.float64)), LINEAR)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_largest_scales(method: Callable[[Matrix, Linear], Quantized]) -> None:
    """A share beyond the full range would be infinite in float16."""
    for symmetric, steps in ((True, 7), (False, 15)):
        weight = np.array([[65_504.0 * steps, 1.0, 2.0]], np.float32)
        chosen = method(weight, Linear(4, 16, symmetric))
        check_codes(chosen, weight)
        assert abs(restored(chosen)[0, 0] / weight[0, 0] - 1) < 0.1


def test_encode_takes_scales_of_either_sign() -> None:
    weight, format = np.array([[-2.0, 0.0, 0.6, 1.5]], np.float32), Linear(4, 16, symmetric=True)
    chosen = encode(weight, format, np.array([[-0.25]], np.float16), np.array([[8]], np.uint8))
    assert chosen.codes.tolist() == [[15, 8, 6, 2]]  # -2 would be eight steps up, where there are seven
    assert chosen.dequantize().tolist() == [[-1.75, 0.0, 0.5, 1.5]]
