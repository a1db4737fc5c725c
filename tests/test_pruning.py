"""Which weights become zeros: against definitions written out in float64, and what the others make up for."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from checkpoint_oracle import assert_one_sentence
from edgeblt.errors import EdgebltError
from edgeblt.quant.formats.weight_format import Linear, Quantized
from edgeblt.quant.methods.data_free import quantize_least_squares
from edgeblt.quant.methods.gptq import Inputs, Products, gptq
from edgeblt.quant.methods.pruning import (
    MAGNITUDE,
    SPARSEGPT,
    WANDA,
    Sparsity,
    keep_largest,
    magnitude_mask,
    wanda_mask,
)
from test_formats import by_column
from test_methods import dependent_inputs, output_error

PATTERNS = ("2:4", "4:8", "1:4", "50%", "60%", "35%", "99%")


def linear(sparsity: str, bits: int = 8, block_size: int | None = 32) -> Linear:
    return Linear(bits, block_size, symmetric=True, sparsity=sparsity)


def inputs_of(values: NDArray[np.float64], group: int = 1) -> Inputs:
    """Inputs that the pruned model makes as the exact one does."""
    gram = torch.from_numpy(values.T @ values)
    return Inputs(Products(gram, torch.zeros_like(gram)), group)


def group_of(sparsity: str) -> int:
    return Sparsity.parse(sparsity).group or 1


@pytest.mark.parametrize(
    ("text", "share", "group"),
    [("2:4", 0.5, 4), ("4:8", 0.5, 8), ("1:4", 0.75, 4), ("7:8", 0.125, 8), ("50%", 0.5, None), ("99%", 0.99, None)],
)
def test_patterns_are_read(text: str, share: float, group: int | None) -> None:
    assert abs(Sparsity.parse(text).share - share) < 1e-12 and Sparsity.parse(text).group == group


@pytest.mark.parametrize("text", ["", "4:4", "5:4", "0:4", "2:16", "2 : 4", "100%", "0%", "50", "5.5%", "٢:4", "-1%"])
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(EdgebltError, match="write 2:4, 4:8") as refused:
        Sparsity.parse(text)
    assert_one_sentence(str(refused.value))


@given(st.sampled_from(PATTERNS), st.integers(1, 5), st.integers(1, 40), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_the_largest_are_kept(text: str, rows: int, columns: int, levels: int, seed: int) -> None:
    """Row by row and group by group, sorted in Python; with few levels many are equal, and the first win."""
    sparsity = Sparsity.parse(text)
    scores = np.random.default_rng(seed).integers(0, levels + 1, (rows, columns)).astype(np.float64)
    expected = np.zeros((rows, columns), bool)
    for row, start in itertools.product(range(rows), range(0, columns, sparsity.group or columns)):
        places = range(start, min(start + (sparsity.group or columns), columns))
        count = sparsity.kept if sparsity.group else int(np.ceil(columns * sparsity.kept / 100 - 1e-9))
        best = sorted(places, key=lambda place: (-scores[row, place], place))[:count]
        expected[row, best] = True
    np.testing.assert_array_equal(keep_largest(scores, sparsity), expected)


def test_magnitude_and_wanda() -> None:
    weight = np.array([[-3.0, 1.0, 2.0, -2.5]], np.float32)
    assert magnitude_mask(weight, Sparsity.parse("2:4")).tolist() == [[True, False, False, True]]
    sizes = np.array([0.1, 9.0, 2.0, 1.0])
    assert wanda_mask(weight, sizes, Sparsity.parse("50%")).tolist() == [[False, True, True, False]]


def in_turn(weight: NDArray[np.float32], gram: NDArray[np.float64], chosen: Quantized, batch: int) -> NDArray[np.uint8]:
    """SparseGPT's algorithm 1 in float64 numpy, one column at a time: the inverse is taken anew before each."""
    format, columns = chosen.format, weight.shape[1]
    sparsity = Sparsity.parse(format.sparsity)
    step = sparsity.group or batch
    energies = np.diag(gram)[: columns // step * step] if sparsity.group else np.diag(gram)
    group = sparsity.group or 1
    first = np.argsort(-energies.reshape(-1, group).sum(axis=1), kind="stable")
    order = [*(first[:, None] * group + np.arange(group)).ravel(), *range(len(energies), columns)]
    damped = gram + 0.01 * np.diag(gram).mean() * np.eye(columns)
    scales = by_column(chosen.scales, format, columns)
    left, codes = weight.astype(np.float64), np.full(weight.shape, format.middle)
    kept = np.ones(weight.shape, bool)
    for done, column in enumerate(order):
        remaining = order[done:]
        inverse = np.linalg.inv(damped[np.ix_(remaining, remaining)])
        if done % step == 0:
            # What a column will cost when its turn comes: the inverse without those before it.
            turns = [np.linalg.inv(damped[np.ix_(order[at:], order[at:])])[0, 0] for at in range(done, done + step)
                     if at < columns]  # fmt: skip
            places = order[done : done + step]
            count = sparsity.kept if sparsity.group else sparsity.count(done + len(places)) - sparsity.count(done)
            scores = left[:, places] ** 2 / np.array(turns)
            for row, best in enumerate(np.argsort(-scores, axis=1, kind="stable")[:, :count]):
                kept[row, places] = False
                kept[row, np.array(places)[best]] = True
        rounded = np.clip(np.rint(left[:, column] / scales[:, column]) + format.middle, 0, format.levels - 1)
        codes[:, column] = np.where(kept[:, column], rounded, format.middle)
        error = left[:, column] - (codes[:, column] - format.middle) * scales[:, column]
        left[:, remaining] -= np.outer(error / inverse[0, 0], inverse[0])
    return codes.astype(np.uint8)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("sparsity", "columns"), [("2:4", 60), ("4:8", 60), ("2:4", 61), ("50%", 60), ("70%", 150)])
def test_sparsegpt_as_written_in_the_paper(sparsity: str, columns: int, bits: int) -> None:
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((6, columns)).astype(np.float32)
    values = dependent_inputs(rng, columns, 500)
    chosen = gptq(weight, inputs_of(values, group_of(sparsity)), linear(sparsity, bits), SPARSEGPT)
    np.testing.assert_array_equal(chosen.codes, in_turn(weight, values.T @ values, chosen, 128))


@pytest.mark.parametrize("pruning", [MAGNITUDE, WANDA])
def test_zeros_chosen_beforehand_stay(pruning: str) -> None:
    rng = np.random.default_rng(4)
    weight, values = rng.standard_normal((7, 40)).astype(np.float32), dependent_inputs(rng, 40, 200)
    sizes = np.sqrt(np.square(values).sum(axis=0)) if pruning == WANDA else np.ones(40)
    mask = keep_largest(np.abs(weight) * sizes, Sparsity.parse("2:4"))
    chosen = gptq(weight, inputs_of(values, 4), linear("2:4"), pruning)
    assert not chosen.dequantize()[~mask].any()
    assert np.count_nonzero(chosen.dequantize()[mask]) > 0.9 * mask.sum()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("sparsity", ["2:4", "4:8", "50%"])
def test_making_up_for_zeros_pays(sparsity: str, bits: int) -> None:
    """On inputs that correlate magnitude loses most, SparseGPT least: what it chose is made up for."""
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((24, 96)).astype(np.float32)
    values, format = dependent_inputs(rng, 96, 400), linear(sparsity, bits)
    mask = magnitude_mask(weight, Sparsity.parse(sparsity))
    plain = output_error(quantize_least_squares(np.where(mask, weight, np.float32(0)), format), weight, values)
    errors = {
        pruning: output_error(gptq(weight, inputs_of(values, group_of(sparsity)), format, pruning), weight, values)
        for pruning in (MAGNITUDE, WANDA, SPARSEGPT)
    }
    assert errors[SPARSEGPT] < 0.1 * plain
    assert errors[SPARSEGPT] < errors[MAGNITUDE] and errors[WANDA] < 0.3 * plain


def test_a_group_cut_short_is_pruned_too() -> None:
    """Of the last column alone nothing has to go; the rest of a matrix is as it is without it."""
    rng = np.random.default_rng(6)
    weight, values = rng.standard_normal((5, 33)).astype(np.float32), dependent_inputs(rng, 33, 200)
    present = gptq(weight, inputs_of(values, 4), linear("2:4", block_size=16)).dequantize() != 0
    assert present[:, :32].reshape(5, 8, 4).sum(axis=2).max() == 2 and present[:, 32].all()
