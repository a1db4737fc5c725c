"""The native library's kernels, at every instruction level of this machine, against exact arithmetic, against the
portable bodies, and against themselves however rows are cut; and what is said where there is no library."""

import ctypes
import functools
import itertools
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import patching_oracle
import test_entropy_patch as patching
import tiny_models
from conftest import Exported
from edgeblt.bundle.config import PatchingRule, Rule
from edgeblt.bundle.contract import EDGEBLT, MICROSOFT, Target
from edgeblt.doctor import diagnose
from edgeblt.errors import EdgebltError
from edgeblt.export.export_bundle import export_bundle
from edgeblt.export.operators import matmuls
from edgeblt.model import load
from edgeblt.prepare import prepare
from edgeblt.quant.formats import interleaved_layout, sparse_layout
from edgeblt.quant.formats.weight_format import BLOCK_SIZES
from edgeblt.runtime import native, providers
from sampled import mostly_slow

ROOT = Path(__file__).parents[1]
LEVELS = native.status().levels
needs_library = pytest.mark.skipif(not LEVELS, reason=f"no native library: {native.status().reason}")
at_every_level = pytest.mark.parametrize("level", LEVELS or [pytest.param("none", marks=needs_library)])
Floats = NDArray[np.float32]

FUNCTIONS = {
    matmuls.DENSE: matmuls.dense_matmul_function,
    matmuls.SPARSE: matmuls.sparse_matmul_function,
    matmuls.MASKED: matmuls.masked_matmul_function,
}


@contextmanager
def using(level: str) -> Iterator[None]:
    before = native.use_level(level)
    try:
        yield
    finally:
        native.use_level(before)


@dataclass(frozen=True)
class Product:
    """A node with its weights, and what these are: `exact` [N, K]."""

    op: str
    attributes: dict[str, int]
    weights: dict[str, NDArray[Any]]
    exact: NDArray[np.float64]

    def model(self) -> bytes:
        columns, rows = self.attributes["K"], self.attributes["N"]
        x = ir.val("x", ir.DataType.FLOAT, ["M", columns])
        y = ir.val("y", ir.DataType.FLOAT, ["M", rows])
        weights = []
        for name, array in self.weights.items():
            tensor = ir.tensor(array, name=name)
            weights.append(ir.Value(name=name, type=ir.TensorType(tensor.dtype), const_value=tensor))
            weights[-1].shape = ir.Shape(array.shape)
        attributes = [ir.AttrInt64(name, value) for name, value in self.attributes.items()]
        node = ir.Node(EDGEBLT, self.op, [x, *weights], attributes, outputs=[y])
        opsets = {"": 23, MICROSOFT: 1, EDGEBLT: 1}
        graph = ir.Graph([x], [y], nodes=[node], initializers=weights, opset_imports=opsets, name="product")
        model = ir.Model(graph, ir_version=11, functions=[FUNCTIONS[self.op]()])
        serialized: bytes = ir.serde.serialize_model(model).SerializeToString()
        return serialized

    def open(self, kernel: bool, threads: int = 1) -> onnxruntime.InferenceSession:
        return open_model(self.model(), kernel, threads)

    def rounded_inputs(self, x: Floats) -> NDArray[np.float64]:
        """What a product computes with: in a block the largest magnitude is 127 steps, ties go to even."""
        block = self.attributes["block_size"]
        count = -(-x.shape[1] // block)
        padded = np.zeros((len(x), count * block), np.float32)
        padded[:, : x.shape[1]] = x
        blocks = padded.reshape(len(x), count, block)
        largest = np.abs(blocks).max(axis=2, keepdims=True)
        inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
        steps = np.rint(blocks * inverse).astype(np.float64)
        rounded: NDArray[np.float64] = (steps * (largest / np.float32(127))).reshape(padded.shape)[:, : x.shape[1]]
        return rounded


def open_model(model: bytes, kernel: bool, threads: int = 1, optimized: Path | None = None) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
    if optimized:
        options.optimized_model_filepath = str(optimized)
    if kernel:
        assert native.register(options) is None
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def random_product(op: str, seed: int, rows: int, columns: int, bits: int, block: int, times: int) -> Product:
    chance = np.random.default_rng(seed)
    blocks = -(-columns // block)
    middle = 1 << (bits - 1)
    values = chance.integers(-middle, middle, (rows, columns)).astype(np.int8)
    scales = (chance.normal(size=(rows, -(-blocks // times))) * 0.1).astype(str(chance.choice(["float16", "float32"])))
    attributes = {"K": columns, "N": rows, "bits": bits, "block_size": block, "blocks_per_scale": times}
    offsets = np.zeros((rows, blocks))
    weights: dict[str, NDArray[Any]]
    if op == matmuls.DENSE:
        codes = np.full((rows, blocks * block), middle, np.uint8)
        codes[:, :columns] = values.astype(np.int16) + middle
        weights = {
            "codes": interleaved_layout.interleave_codes(codes.reshape(rows, blocks, block), bits),
            "scales": interleaved_layout.interleave_scales(scales),
            "zero_points": interleaved_layout.same_zero_points(bits),
        }
        if chance.random() < 0.5:
            points = chance.integers(0, 2 * middle, (rows, blocks)).astype(np.uint8)
            weights["zero_points"] = interleaved_layout.interleave_zero_points(points, bits)
            offsets = points.astype(np.float64) - middle
    elif op == matmuls.SPARSE:
        group = int(chance.choice(sparse_layout.GROUPS))
        attributes["group"] = group
        order = np.argsort(chance.random((rows, -(-columns // group), group)), axis=2)
        values[(order >= group // 2).reshape(rows, -1)[:, :columns]] = 0
        values[chance.random(rows) < 0.1] = 0
        tiles = sparse_layout.pack_tiles(values, bits, group)
        weights = {"tiles": tiles, "scales": sparse_layout.pair_scales(scales)}
    else:
        values[chance.random(values.shape) < chance.choice([0, 0.5, 0.9, 1])] = 0
        stored = sparse_layout.pack_masked(values, bits)
        weights = {"mask": stored.mask, "values": stored.values, "offsets": stored.offsets, "scales": scales}

    def spread(array: NDArray[Any], count: int) -> NDArray[np.float64]:
        return np.repeat(array.astype(np.float64), count, axis=1)

    exact_scales = spread(spread(scales, times)[:, :blocks], block)[:, :columns]
    exact = (values.astype(np.float64) - spread(offsets, block)[:, :columns]) * exact_scales
    return Product(op, attributes, weights, exact)


@st.composite
def products(draw: st.DrawFn, op: str) -> tuple[Product, Floats]:
    columns, rows = draw(st.integers(1, 400)), draw(st.integers(1, 40))
    block, bits = draw(st.sampled_from(BLOCK_SIZES)), draw(st.sampled_from([4, 8]))
    times = draw(st.sampled_from([1, 1, 2, 3, 1000]))
    seed = draw(st.integers(0, 2**32 - 1))
    product = random_product(op, seed, rows, columns, bits, block, times)
    count = draw(st.sampled_from([0, 1, 2, 3, 4, 5, 8, 17]))
    chance = np.random.default_rng(seed + 1)
    x = chance.normal(size=(count, columns)) * draw(st.sampled_from([1e-30, 1e-3, 1.0, 1e30]))
    x[chance.random(count) < 0.2] = 0
    x[chance.random(x.shape) < 0.01] *= 100
    return product, x.astype(np.float32)


def error_bound(product: Product, x: Floats) -> NDArray[np.float64]:
    """[M, N] of float32 rounding: of every block's product with its scales, and of a sum over blocks in which zero
    points are taken off on their own."""
    largest = (1 << product.attributes["bits"]) - 1
    inputs = np.abs(product.rounded_inputs(x))
    scale = float(np.abs(product.weights["scales"]).max(initial=0))
    magnitudes = inputs @ np.abs(product.exact).T + inputs.sum(axis=1, keepdims=True) * scale * 2 * largest
    blocks = -(-product.attributes["K"] // product.attributes["block_size"])
    bound: NDArray[np.float64] = magnitudes * (blocks + 16) * 2.0**-24 + 1e-37
    return bound


@at_every_level
@pytest.mark.parametrize("op", FUNCTIONS)
@settings(deadline=None, max_examples=12)
@given(data=st.data())
def test_products_are_those_of_the_rounded_inputs(level: str, op: str, data: st.DataObject) -> None:
    product, x = data.draw(products(op))
    with using(level):
        before = native.runs(op)
        (actual,) = product.open(kernel=True).run(None, {"x": x})
        assert native.runs(op) == before + 1
    expected = product.rounded_inputs(x) @ product.exact.T
    error = np.abs(actual - expected)
    assert (error <= error_bound(product, x)).all(), (error / error_bound(product, x)).max()


@at_every_level
@pytest.mark.parametrize("op", FUNCTIONS)
@settings(deadline=None, max_examples=5)
@given(data=st.data())
def test_a_row_has_the_same_bits_in_any_company(level: str, op: str, data: st.DataObject) -> None:
    product, x = data.draw(products(op))
    with using(level):
        session = product.open(kernel=True)
        (together,) = session.run(None, {"x": x})
        for row in range(len(x)):
            (alone,) = session.run(None, {"x": x[row : row + 1]})
            assert alone.tobytes() == together[row].tobytes()


@needs_library
@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_dense_products_have_the_same_bits_at_every_level(data: st.DataObject) -> None:
    product, x = data.draw(products(matmuls.DENSE))
    found = set()
    for level in LEVELS:
        with using(level):
            found.add(product.open(kernel=True).run(None, {"x": x})[0].tobytes())
    assert len(found) == 1


@needs_library
@pytest.mark.parametrize("op", FUNCTIONS)
@settings(deadline=None, max_examples=6)
@given(data=st.data())
def test_the_portable_body_agrees(op: str, data: st.DataObject) -> None:
    product, x = data.draw(products(op))
    x = x[:5]
    before = native.runs(op)
    (portable,) = product.open(kernel=False).run(None, {"x": x})
    assert native.runs(op) == before
    (kernel,) = product.open(kernel=True).run(None, {"x": x})
    # Both round inputs alike; MatMulNBits may sum in another order and offset.
    np.testing.assert_array_less(np.abs(portable - kernel), 4 * error_bound(product, x) + 1e-37)


@pytest.mark.parametrize("op", FUNCTIONS)
@pytest.mark.parametrize("bits", [4, 8])
def test_a_portable_body_becomes_one_operator_when_opened(op: str, bits: int, tmp_path: Path) -> None:
    product = random_product(op, 3, 10, 200, bits, 32, 2)
    open_model(product.model(), kernel=False, optimized=tmp_path / "optimized.onnx")
    nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
    assert [node.op_type for node in nodes] == ["Pad", "MatMulNBits", "Slice"]  # with a spare row


@pytest.mark.parametrize("op", FUNCTIONS)
@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_a_portable_row_has_the_same_bits_in_any_company(op: str, data: st.DataObject) -> None:
    product, x = data.draw(products(op))
    session = product.open(kernel=False)
    (together,) = session.run(None, {"x": x})
    for start in range(len(x)):
        for end in range(start + 1, len(x) + 1):
            (found,) = session.run(None, {"x": x[start:end]})
            assert found.tobytes() == together[start:end].tobytes()


@needs_library
@pytest.mark.parametrize("op", FUNCTIONS)
def test_threads_change_no_bit(op: str) -> None:
    product = random_product(op, 5, 300, 1024, 8, 128, 1)
    x = np.random.default_rng(0).normal(size=(9, 1024)).astype(np.float32)
    one, two = (product.open(kernel=True, threads=threads).run(None, {"x": x})[0] for threads in (1, 2))
    assert one.tobytes() == two.tobytes()


@at_every_level
@pytest.mark.parametrize("op", FUNCTIONS)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_stays_in_its_row(level: str, op: str, value: float) -> None:
    product = random_product(op, 7, 20, 100, 8, 32, 1)
    x = np.ones((3, 100), np.float32)
    x[1, 50] = value
    with using(level):
        (y,) = product.open(kernel=True).run(None, {"x": x})
    assert np.isfinite(y[[0, 2]]).all()
    assert np.isnan(y[1]).all()


@needs_library
def test_leading_dimensions_stay() -> None:
    product = random_product(matmuls.DENSE, 1, 8, 32, 8, 32, 1)
    model = onnx.load_from_string(product.model())
    for value in (*model.graph.input, *model.graph.output):
        *_, last = value.type.tensor_type.shape.dim
        shape = ["batch", "rows", last.dim_value]
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, shape))
    x = np.random.default_rng(0).normal(size=(2, 3, 32)).astype(np.float32)
    (y,) = open_model(model.SerializeToString(), kernel=True).run(None, {"x": x})
    (rows,) = product.open(kernel=True).run(None, {"x": x.reshape(6, 32)})
    assert y.shape == (2, 3, 8)
    assert y.tobytes() == rows.tobytes()


REFUSED: dict[str, tuple[str, dict[str, int], dict[str, Callable[[NDArray[Any]], NDArray[Any]]]]] = {
    "block_size is 48": (matmuls.DENSE, {"block_size": 48}, {}),
    "bits is 5": (matmuls.DENSE, {"bits": 5}, {}),
    "group is 6": (matmuls.SPARSE, {"group": 6}, {}),
    "codes is 1 x 4 x 512": (matmuls.DENSE, {"N": 17}, {}),
    "scales is 1 x 4 x 16": (matmuls.DENSE, {"blocks_per_scale": 2}, {}),
    "zero_points is 1 x 1": (matmuls.DENSE, {}, {"zero_points": lambda array: np.zeros((1, 1), np.uint8)}),
    "zero_points of one byte is not the middle": (matmuls.DENSE, {}, {"zero_points": lambda _: np.ones(1, np.uint8)}),
    "tiles is 4 x 1 x 1": (matmuls.SPARSE, {"bits": 4}, {}),
    "do not belong together": (matmuls.MASKED, {}, {"offsets": lambda array: array + 1}),
    "mask, values and offsets": (matmuls.MASKED, {}, {"mask": lambda array: ~array}),
    "values and offsets": (matmuls.MASKED, {}, {"values": lambda array: array[:-1]}),
}


@needs_library
@pytest.mark.parametrize("said", REFUSED)
def test_weights_that_do_not_fit_are_refused_when_the_model_is_opened(said: str) -> None:
    op, attributes, changes = REFUSED[said]
    product = random_product(op, 11, 8, 128, 8, 32, 1)
    weights = product.weights | {name: change(product.weights[name]) for name, change in changes.items()}
    broken = Product(op, product.attributes | attributes, weights, product.exact)
    with pytest.raises(Exception, match=said) as caught:
        broken.open(kernel=True)
    assert f"edgeblt::{op}" in str(caught.value)


# Entropies and patch starts.


@functools.cache
def kernel_session(rule: Rule, target: Target = "cpu") -> onnxruntime.InferenceSession:
    return open_model(patching.model(PatchingRule(rule), target=target).SerializeToString(), kernel=True)


@contextmanager
def with_kernel(level: str) -> Iterator[None]:
    with using(level), pytest.MonkeyPatch.context() as patch:
        patch.setattr(patching, "session", kernel_session)
        before = native.runs("EntropyPatch")
        yield
        assert native.runs("EntropyPatch") > before


@at_every_level
@pytest.mark.parametrize("rule", Rule)
@settings(deadline=None, max_examples=8)
@given(data=st.data())
def test_patch_starts_agree_with_the_oracle_in_any_chunks(level: str, rule: Rule, data: st.DataObject) -> None:
    sequence = data.draw(patching.sequences(rule))
    settings_, logits, entropies, ids, sizes = sequence
    body = patching.run(settings_, logits, ids, [len(ids)])
    with with_kernel(level):
        whole = patching.run(settings_, logits, ids, [len(ids)])
        patching.assert_same_bits(patching.run(settings_, logits, ids, sizes), whole)
        patching.assert_same_bits(patching.run(settings_, logits, ids, [1] * len(ids)), whole)
        for begin in range(1, len(ids), 5):
            rest = [len(ids) - begin]
            again = patching.run(settings_, logits[begin:], ids[begin:], rest, begin, whole.states[begin - 1])
            patching.assert_same_bits(again, whole.rows(slice(begin, None)))
    np.testing.assert_array_equal(whole.patch_starts, patching_oracle.patch_starts(settings_, entropies, ids))
    np.testing.assert_array_equal(whole.patch_starts, body.patch_starts)
    np.testing.assert_array_equal(whole.states[:, 1:], body.states[:, 1:])
    np.testing.assert_array_equal(whole.states[:, 0], whole.entropies)


@at_every_level
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 5.0, 100.0, 1e30])
@pytest.mark.parametrize("width", [1, 2, 7, 8, 9, 37, 260])
def test_entropies_within_rounding(level: str, width: int, scale: float) -> None:
    logits = (np.random.default_rng(width).normal(size=(33, width)) * scale).astype(np.float32)
    with with_kernel(level):
        actual = patching.run(PatchingRule(Rule.THRESHOLD), logits, np.full(33, 1), [33]).entropies
    assert (actual >= 0).all()
    error, exact = np.abs(actual - patching_oracle.entropies(logits)), patching_oracle.entropies(logits)
    # Rounding of a logarithm and a quotient, of sums in eight lanes, and of exponentials of rounded differences.
    spread = np.abs(logits).max(axis=1).clip(max=100)
    bound = (2 * exact + (width / 8 + 20) * (1 + exact) + 4 * spread * np.minimum(exact * spread, 1) + 1) * 2.0**-24
    assert (error <= bound).all(), (error / bound).max()


@at_every_level
def test_a_certain_byte_has_no_entropy(level: str) -> None:
    logits = np.zeros((3, 260), np.float32)
    logits[0, 7] = 1e4
    logits[1, 259] = 3e38
    logits[2] = -3e38
    logits[2, 3] = 3e38
    with with_kernel(level):
        starts = patching.run(
            PatchingRule(Rule.THRESHOLD, 0.0), logits, np.full(3, 101), [3], 10, np.zeros(3, np.float32)
        )
    assert starts.entropies.tolist() == [0, 0, 0]
    assert not starts.patch_starts.any()


@at_every_level
@pytest.mark.parametrize("rule", Rule)
def test_far_positions_keep_counting(level: str, rule: Rule) -> None:
    with with_kernel(level):
        patching.test_far_positions_keep_counting(rule)


@needs_library
def test_a_patch_size_of_zero_is_refused() -> None:
    inputs = patching.feed(np.zeros((1, 37), np.float32), np.array([1]), 0, np.zeros(3, np.float32))
    with pytest.raises(Exception, match="edgeblt::EntropyPatch: patch_size is 0"):
        kernel_session(Rule.STATIC).run(None, inputs | {"patch_size": np.array([0])})


# Layouts.


@settings(deadline=None)
@given(st.integers(1, 7), st.integers(1, 300), st.sampled_from([4, 8]), st.sampled_from([4, 8]), st.integers(0, 2**32))
def test_packing_is_undone(rows: int, columns: int, bits: int, group: int, seed: int) -> None:
    chance = np.random.default_rng(seed)
    middle = 1 << (bits - 1)
    values = chance.integers(-middle, middle, (rows, columns)).astype(np.int8)
    values[chance.random(values.shape) < 0.5] = 0
    masked = sparse_layout.pack_masked(values, bits)
    np.testing.assert_array_equal(sparse_layout.unpack_masked(masked, columns, bits), values)
    assert len(masked.values) == masked.offsets[-1] + sparse_layout.PADDING

    order = np.argsort(chance.random((rows, -(-columns // group), group)), axis=2)
    values[(order >= group // 2).reshape(rows, -1)[:, :columns]] = 0
    assert sparse_layout.fits_groups(values, group)
    tiles = sparse_layout.pack_tiles(values, bits, group)
    np.testing.assert_array_equal(sparse_layout.unpack_tiles(tiles, rows, columns, bits, group), values)


def test_packed_bytes() -> None:
    values = np.zeros((2, 128), np.int8)
    values[0, [1, 3]], values[1, [64, 67]] = [5, -6], [7, -8]
    tile = sparse_layout.pack_tiles(values, 8, 4)[0, 0]
    assert tile.shape == (160,)
    # The first row's group of columns 0 to 3 has slots 0 and 1 of vector 0; the second row's of 64 to 67 has slots 4
    # and 5 of vector 2. Where a group holds nothing its slots point at its first two columns.
    assert tile[32:34].view(np.int8).tolist() == [5, -6]
    assert tile[32 + 64 + 4 : 32 + 64 + 6].view(np.int8).tolist() == [7, -8]
    assert np.count_nonzero(tile[32:]) == 4
    assert [int(tile[0]) & 3, int(tile[1]) & 3] == [1, 3]
    assert [int(tile[4]) >> 4 & 3, int(tile[5]) >> 4 & 3] == [0, 3]

    masked = sparse_layout.pack_masked(values, 4)
    assert masked.mask.tolist() == [[10] + [0] * 15, [0] * 8 + [9] + [0] * 7]
    assert masked.values[:2].tolist() == [(5 + 8) | (-6 + 8) << 4, (7 + 8) | (-8 + 8) << 4]
    assert masked.offsets.tolist() == [0, 1, 2]


def test_what_cannot_be_packed_is_refused() -> None:
    full = np.ones((2, 8), np.int8)
    with pytest.raises(EdgebltError, match="more than 2 of 4 columns hold weights; prune to 2 of 4, or use a mask"):
        sparse_layout.pack_tiles(full, 8, 4)
    with pytest.raises(EdgebltError, match="values are 9 to 9; 4 bits hold -8 to 7"):
        sparse_layout.pack_masked(full * np.int8(9), 4)


# The library itself.


@needs_library
def test_sessions_of_bundles_use_the_kernels() -> None:
    product = random_product(matmuls.MASKED, 2, 4, 40, 8, 32, 1)
    session = onnxruntime.InferenceSession(product.model(), providers.session_options(1))
    before = native.runs(matmuls.MASKED)
    session.run(None, {"x": np.ones((1, 40), np.float32)})
    assert native.runs(matmuls.MASKED) == before + 1


@needs_library
@pytest.mark.parametrize(  # layers of the last two seeds are one operator
    ("bits", "seed"), mostly_slow(itertools.product((8, 4), (10, 12, 24, 27)), [(8, 10), (4, 12), (4, 24), (8, 27)])
)
def test_chunks_change_no_bit(bits: int, seed: int, exported: Callable[[int], Exported], tmp_path: Path) -> None:
    """Of an int8 or int4 model: decoding, reading a prompt and checking drafts give the very same logits."""
    parts = ("patcher", "encoder", "global", "decoder", "tables")
    recipe = "".join(f'[{part}]\nformat = "int{bits}"\nblock_size = 32\n' for part in parts)
    (tmp_path / "recipe.toml").write_text(recipe)
    model = load(export_bundle(exported(seed).checkpoint, tmp_path / "bundle", tmp_path / "recipe.toml").path)
    ids = tiny_models.random_ids(seed, 150)
    session = model.session()
    expected = np.concatenate([session.feed([id]) for id in ids])
    for size in (2, 3, 5, 33, 150):
        session = model.session()
        found = np.concatenate([session.feed(ids[start : start + size]) for start in range(0, len(ids), size)])
        np.testing.assert_array_equal(found, expected)


@needs_library
def test_what_was_read_natively_needs_no_preparing(exported: Callable[[int], Exported], tmp_path: Path) -> None:
    parts = ("patcher", "encoder", "global", "decoder", "tables")
    recipe = "".join(f'[{part}]\nformat = "int8"\nblock_size = 32\n' for part in parts)
    (tmp_path / "recipe.toml").write_text(recipe)
    export_bundle(exported(10).checkpoint, tmp_path / "bundle", tmp_path / "recipe.toml")
    assert {outcome.bytes for outcome in prepare(tmp_path / "bundle").stages} == {0}


@needs_library
def test_a_runtime_without_the_interface_is_reported() -> None:
    """The runtime gives no table of functions for our version, but one for the oldest, which makes the status."""
    said: list[bytes] = []

    def status(code: int, message: bytes) -> int:
        said.append(message)
        return 1

    create_status = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)(status)
    table = (ctypes.c_void_p * 1)(ctypes.cast(create_status, ctypes.c_void_p))
    get_api = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)(
        lambda version: ctypes.addressof(table) if version == 1 else None
    )
    text = ctypes.create_string_buffer(b"1.2.3")
    get_version = ctypes.CFUNCTYPE(ctypes.c_void_p)(lambda: ctypes.addressof(text))
    base = (ctypes.c_void_p * 2)(ctypes.cast(get_api, ctypes.c_void_p), ctypes.cast(get_version, ctypes.c_void_p))
    library = ctypes.CDLL(str(native.library_path()))
    library.RegisterCustomOps.restype = ctypes.c_void_p
    assert library.RegisterCustomOps(None, base) == 1
    assert said == [b"onnxruntime 1.2.3 has no C API version 24; install a newer one"]
    library.edgeblt_registration_error.restype = ctypes.c_char_p
    assert library.edgeblt_registration_error() == said[0]
    assert native.register(onnxruntime.SessionOptions()) is None  # and later calls start afresh


class Refusing:
    def register_custom_ops_library(self, path: str) -> None:
        raise RuntimeError("not\nthis one")


@needs_library
def test_a_library_that_is_not_taken_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    native.warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, "edgeblt"):
        assert native.register(Refusing()) == native.register(Refusing()) == "not this one"
    assert [record.getMessage() for record in caplog.records] == [
        f"the native library is not used, all runs slower: {native.library_path()} was not taken: not this one"
    ]


def test_no_library_is_reported_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = native.NativeStatus(None, None, "it was not built")
    monkeypatch.setattr(native, "status", lambda: absent)
    monkeypatch.delenv(native.VARIABLE, raising=False)
    native.warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, "edgeblt"):
        assert native.register(None) == native.register(None) == "it was not built"
        with monkeypatch.context() as asked_for:
            asked_for.setenv(native.VARIABLE, "0")
            native.warn_once.cache_clear()
            assert native.register(None) == "it was not built"  # asked for: nothing is said
    assert [record.getMessage() for record in caplog.records] == [
        "the native library is not used, all runs slower: it was not built"
    ]
    assert native.runs("EntropyPatch") == 0
    assert diagnose().native_reason == "it was not built"
    assert native.describe() == "not used: it was not built"


@needs_library
@pytest.mark.parametrize(
    ("value", "level", "reason"),
    [
        ("", native.status().levels[-1] if LEVELS else "", None),
        ("1", native.status().levels[-1] if LEVELS else "", None),
        ("scalar", "scalar", None),
        ("0", None, "turned off by EDGEBLT_NATIVE=0"),
        ("off", None, "turned off by EDGEBLT_NATIVE=off"),
        ("sse", None, f"EDGEBLT_NATIVE is 'sse'; use one of 0, off, {', '.join(LEVELS)}, or unset it"),
    ],
)
def test_the_environment_chooses(value: str, level: str | None, reason: str | None) -> None:
    program = (
        "import json; from edgeblt.runtime.native import status; print(json.dumps([status().level, status().reason]))"
    )
    environment = os.environ | {native.VARIABLE: value, "PYTHONPATH": str(ROOT)}
    printed = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True).stdout
    assert json.loads(printed) == [level, reason]


@needs_library
def test_unknown_levels_are_refused() -> None:
    missing = next(level for level in native.LEVELS if level not in LEVELS)
    with pytest.raises(ValueError, match=f"{missing} is not available; use one of scalar"):
        native.use_level(missing)


def test_diagnosis() -> None:
    found = diagnose()
    status = native.status()
    assert (found.onnxruntime, found.native_version) == (onnxruntime.__version__, status.version)
    assert (found.native_reason is None) == (found.native_level is not None) == (found.native_operators != ())
    assert "CPUExecutionProvider" in found.execution_providers


@pytest.mark.slow
@pytest.mark.skipif(not all(map(shutil.which, ("cmake", "c++", "make"))), reason="no cmake, make or C++ compiler")
def test_kernels_under_sanitizers(tmp_path: Path) -> None:
    command = ["make", "-C", str(ROOT), "native-tests", f"NATIVE_BUILD={tmp_path}", "ROUNDS=100"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    elsewhere = all(map(shutil.which, ("aarch64-linux-gnu-g++", "qemu-aarch64"))) and os.uname().machine != "aarch64"
    assert result.stdout.count("100 rounds agree") == 1 + elsewhere
    assert ("SKIPPED: NEON" in result.stdout) != (elsewhere or os.uname().machine == "aarch64")
