"""`edgeblt::DenseLayer` and the decoder's cross-attentions: kernels and portable bodies against float64, rows against
themselves in other company, and which layers of a model become one operator."""

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import test_window_attention as attention
import tiny_models
from conftest import Exported
from edgeblt.bundle.contract import EDGEBLT, MICROSOFT
from edgeblt.export.export_bundle import export_bundle
from edgeblt.export.operators import layers, matmuls
from edgeblt.model import load
from edgeblt.quant.compress import quantize_checkpoint
from edgeblt.quant.formats.weight_format import BLOCK_SIZES
from edgeblt.runtime import native
from test_bundle import name_contrib_ops
from test_native import Product, at_every_level, needs_library, open_model, random_product, using

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Arrays = dict[str, NDArray[Any]]

# A value next to the border of two steps may be rounded to either: of 127 steps, times a weight, in a sum of many.
ONE_STEP = 0.03
FLOAT32 = 3e-6
KINDS = {"float32": ir.DataType.FLOAT, "int32": ir.DataType.INT32, "int64": ir.DataType.INT64}


@dataclass(frozen=True)
class Node:
    """An operator with its attributes, its inputs, of which some are initializers, and its outputs' ranks."""

    op: str
    attributes: dict[str, int | float]
    inputs: Arrays
    initializers: Arrays
    outputs: dict[str, int]

    def model(self) -> bytes:
        values = [
            ir.val(name, KINDS[str(array.dtype)], [f"{name}_{axis}" for axis in range(array.ndim)])
            for name, array in self.inputs.items()
        ]
        outputs = [
            ir.val(name, ir.DataType.FLOAT, [f"{name}_{axis}" for axis in range(rank)])
            for name, rank in self.outputs.items()
        ]
        weights = []
        for name, array in self.initializers.items():
            tensor = ir.tensor(array, name=name)
            value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), const_value=tensor)
            value.shape = ir.Shape(array.shape)
            weights.append(value)
        by_name = {value.name: value for value in (*values, *weights)}
        function = FUNCTIONS[self.op]()
        operands = [by_name.get(formal.name) for formal in function.inputs]
        attributes: list[ir.Attr] = [
            ir.AttrFloat32(name, value) if isinstance(value, float) else ir.AttrInt64(name, value)
            for name, value in self.attributes.items()
        ]
        node = ir.Node(EDGEBLT, self.op, operands, attributes, outputs=outputs)
        opsets = {"": 23, MICROSOFT: 1, EDGEBLT: 1}
        graph = ir.Graph(values, outputs, nodes=[node], initializers=weights, opset_imports=opsets, name="node")
        model = ir.Model(graph, ir_version=11, functions=[make() for make in FUNCTIONS.values()])
        serialized: bytes = ir.serde.serialize_model(model).SerializeToString()
        return serialized

    def open(self, kernel: bool, threads: int = 1) -> Any:
        return open_model(self.model(), kernel, threads)


FUNCTIONS: dict[str, Callable[[], ir.Function]] = {
    matmuls.DENSE: functools.cache(matmuls.dense_matmul_function),
    matmuls.PROJECTION: functools.cache(matmuls.dense_projection_function),
    matmuls.ATTENTION: functools.cache(matmuls.window_attention_function),
    layers.LATENT: functools.cache(layers.latent_attention_function),
    layers.LAYER: functools.cache(layers.dense_layer_function),
    layers.CROSS: functools.cache(layers.dense_cross_attention_function),
}


def some_product(chance: np.random.Generator, rows: int, columns: int) -> Product:
    """Weights [rows, columns] in any format, of the size that keeps the variance of what they multiply."""
    bits, block = int(chance.choice([4, 8])), int(chance.choice(BLOCK_SIZES))
    seed, times = int(chance.integers(1 << 32)), int(chance.choice([1, 1, 2, 1000]))
    product = random_product(matmuls.DENSE, seed, rows, columns, bits, block, times)
    scales = product.weights["scales"]
    factor = float(scales.dtype.type(1 / (np.sqrt(columns) * max(float(product.exact.std()), 1e-9))))
    shrunk = (scales.astype(np.float64) * factor).astype(scales.dtype)
    exact = scales.astype(np.float64)
    ratio = np.divide(shrunk, exact, out=np.zeros_like(exact), where=exact != 0)
    by_row = ratio.transpose(0, 2, 1).reshape(-1, ratio.shape[1])[:rows]
    ratio = by_row[:, np.arange(columns) // (block * times)]
    return replace(product, weights=product.weights | {"scales": shrunk}, exact=product.exact * ratio)


def weights_of(products: dict[str, Product]) -> tuple[Arrays, dict[str, int]]:
    """Initializers and attributes of an operator of several products."""
    arrays = {f"{name}_{part}": array for name, product in products.items() for part, array in product.weights.items()}
    attributes = {
        f"{name}_{attribute}": product.attributes[attribute]
        for name, product in products.items()
        for attribute in matmuls.ROUNDING_ATTRIBUTES
    }
    return arrays, attributes


def normalized(x: Doubles, weight: Floats, epsilon: float) -> Doubles:
    result: Doubles = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + epsilon) * weight
    return result


def times(x: Doubles, product: Product) -> Doubles:
    """The product with inputs rounded as its operator rounds them."""
    result: Doubles = product.rounded_inputs(x.astype(np.float32)) @ product.exact.T
    return result


@dataclass(frozen=True)
class Layer:
    """A layer over the cache of `cache`, whose rows are not used."""

    x: Floats
    norms: Floats  # [2, width]
    products: dict[str, Product]
    cache: attention.Case
    epsilon: float

    def node(self) -> Node:
        arrays, attributes = weights_of(self.products)
        case, end = self.cache, self.cache.past + len(self.x)
        sizes = {
            "width": self.x.shape[1], "projected": self.products["query"].attributes["N"],
            "attended": case.heads * case.width, "intermediate": self.products["gate"].attributes["N"],
        }  # fmt: skip
        heads: dict[str, int | float] = {
            "num_heads": case.heads, "kv_num_heads": case.kv_heads, "window": case.window, "scale": case.scale,
        }  # fmt: skip
        inputs = {
            "x": self.x, "past_key": case.keys[None], "past_value": case.values[None],
            "total_length": np.array([end], np.int32), "cosines": np.cos(case.angles), "sines": np.sin(case.angles),
        }  # fmt: skip
        norms = {"attention_norm": self.norms[0], "mlp_norm": self.norms[1]}
        outputs = {"y": 2, "present_key": 4, "present_value": 4}
        return Node(
            layers.LAYER, heads | sizes | attributes | {"epsilon": self.epsilon}, inputs, norms | arrays, outputs
        )

    def run(self, session: Any, cuts: list[int]) -> Floats:
        """The rows fed in parts, past and present in one buffer as a session of edgeblt's."""
        inputs, parts = self.node().inputs, []
        keys, values = inputs["past_key"].copy(), inputs["past_value"].copy()
        for start, end in zip([0, *cuts], [*cuts, len(self.x)], strict=True):
            y = np.empty((end - start, self.x.shape[1]), np.float32)
            total = np.array([self.cache.past + end], np.int32)
            part = {"x": self.x[start:end].copy(), "past_key": keys, "past_value": values, "total_length": total}
            binding = session.io_binding()
            for name, array in (inputs | part).items():
                binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
            for name, array in {"y": y, "present_key": keys, "present_value": values}.items():
                binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
            session.run_with_iobinding(binding)
            parts.append(y)
        return np.concatenate(parts)

    def exact(self) -> Doubles:
        """The definition, in float64 but for the rounding of products' inputs."""
        x, case = self.x.astype(np.float64), self.cache
        projected = times(normalized(x, self.norms[0], self.epsilon), self.products["query"])
        rows = projected.reshape(len(x), -1, case.width).astype(np.float32)
        attended = replace(case, rows=rows).exact().reshape(len(x), -1)
        total = x + times(attended, self.products["output"])
        normed = normalized(total, self.norms[1], self.epsilon)
        gate, up = times(normed, self.products["gate"]), times(normed, self.products["up"])
        return total + times(gate / (1 + np.exp(-gate)) * up, self.products["down"])


def random_layer(seed: int, count: int | None = None) -> Layer:
    chance = np.random.default_rng(seed)
    kv_heads, head_width = int(chance.integers(1, 3)), 16 * int(chance.integers(1, 4))
    heads = kv_heads * int(chance.integers(1, 4))
    width, intermediate = int(chance.integers(1, 200)), int(chance.integers(1, 300))
    past, rows = int(chance.integers(0, 60)), count or int(chance.choice([1, 2, 3, 5, 8, 17, 40]))
    capacity = past + rows + int(chance.integers(1, 5))
    cache = chance.normal(size=(2, kv_heads, capacity, head_width)).astype(np.float32)
    angles = chance.uniform(-7, 7, (capacity, head_width // 2)).astype(np.float32)
    window = int(chance.choice([-1, 1, 7, 33]))
    case = attention.Case(
        heads, kv_heads, window, capacity, past, np.zeros((rows, 1, head_width), np.float32), cache[0], cache[1], angles
    )
    sizes = {
        "query": ((heads + 2 * kv_heads) * head_width, width), "output": (width, heads * head_width),
        "gate": (intermediate, width), "up": (intermediate, width), "down": (width, intermediate),
    }  # fmt: skip
    products = {name: some_product(chance, *size) for name, size in sizes.items()}
    if chance.random() < 0.5:  # as layers of one format: gate and up read the same rounded inputs
        products["up"] = replace(products["gate"])
    x = chance.normal(size=(rows, width)) * chance.choice([0.01, 1.0, 30.0])
    x[chance.random(rows) < 0.05] = 0
    norms = chance.uniform(0.5, 1.5, (2, width))
    return Layer(x.astype(np.float32), norms.astype(np.float32), products, case, float(chance.choice([1e-5, 1e-3])))


def error(found: NDArray[Any], expected: Doubles) -> Doubles:
    """Of each row, in units of the largest value."""
    result: Doubles = np.abs(found - expected).max(axis=1) / max(1e-30, float(np.abs(expected).max()))
    return result


@at_every_level
@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 2**32 - 1), data=st.data())
def test_a_layer_is_its_definition_and_the_same_in_any_company(level: str, seed: int, data: st.DataObject) -> None:
    layer = random_layer(seed)
    with using(level):
        session, before = layer.node().open(kernel=True), native.runs(layers.LAYER)
        whole = layer.run(session, [])
        assert native.runs(layers.LAYER) == before + 1
        assert error(whole, layer.exact()).max() < ONE_STEP
        np.testing.assert_array_equal(layer.run(session, list(range(1, len(layer.x)))), whole)
        cuts = sorted(data.draw(st.sets(st.integers(1, len(layer.x) - 1)))) if len(layer.x) > 1 else []
        np.testing.assert_array_equal(layer.run(session, cuts), whole)


@functools.cache
def single_rows() -> list[tuple[Layer, bytes, Doubles]]:
    """Layers of one row, as models, and what they are by definition."""
    some = [random_layer(seed, count=1) for seed in range(30)]
    return [(layer, layer.node().model(), layer.exact()) for layer in some]


@at_every_level
def test_most_rows_are_exact(level: str) -> None:
    """But for the few values next to the border of two steps: a wrong epsilon or sum would show in every row."""
    with using(level):
        errors = []
        for layer, model, exact in single_rows():
            errors.append(float(error(layer.run(open_model(model, kernel=True), []), exact)[0]))
    assert np.quantile(errors, 0.7) < FLOAT32, np.sort(errors)


@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_portable_body_agrees(seed: int) -> None:
    """It is of operators in operators: the runtime takes both apart."""
    layer = random_layer(seed)
    before = native.runs(layers.LAYER)
    found = layer.run(layer.node().open(kernel=False), [])
    assert native.runs(layers.LAYER) == before
    assert error(found, layer.exact()).max() < ONE_STEP


@needs_library
def test_threads_change_no_bit() -> None:
    layer = next(layer for layer in map(random_layer, range(1000)) if len(layer.x) == 40 and layer.x.shape[1] > 150)
    one, three = (layer.run(layer.node().open(kernel=True, threads=threads), []) for threads in (1, 3))
    np.testing.assert_array_equal(one, three)


@needs_library
def test_past_and_present_apart() -> None:
    layer = random_layer(5, count=9)
    session, past = layer.node().open(kernel=True), layer.cache.past
    y, keys, values = session.run(None, layer.node().inputs)
    np.testing.assert_array_equal(y, layer.run(session, []))
    np.testing.assert_array_equal(keys[0, :, :past], layer.cache.keys[:, :past])
    np.testing.assert_array_equal(values[0, :, :past], layer.cache.values[:, :past])


@at_every_level
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_shows(level: str, value: float) -> None:
    layer = random_layer(7, count=1)
    layer.x[0, -1] = value
    with using(level):
        assert np.isnan(layer.run(layer.node().open(kernel=True), [])).any()


@needs_library
def test_no_rows() -> None:
    layer = random_layer(3, count=1)
    none = replace(layer, x=layer.x[:0])
    y, keys, _ = layer.node().open(kernel=True).run(None, none.node().inputs)
    assert y.shape == (0, layer.x.shape[1])
    np.testing.assert_array_equal(keys[0, :, : layer.cache.past], layer.cache.keys[:, : layer.cache.past])


LAYER_MISFITS: dict[str, Callable[[Node], Arrays]] = {
    "x is 4 x 1 of type 1, not any x": lambda node: {"x": np.zeros((4, 1), np.float32)},
    "past_value is": lambda node: {"past_value": node.inputs["past_value"][..., :-8].copy()},
    "sines is": lambda node: {"sines": node.inputs["sines"][:, :-1].copy()},
    "do not fit a cache of": lambda node: {"total_length": np.array([1000], np.int32)},
    "which are not the heads of": lambda node: {
        **{name: node.inputs[name][..., :8].copy() for name in ("past_key", "past_value")},
        **{name: node.inputs[name][..., :4].copy() for name in ("cosines", "sines")},
    },
}


@needs_library
@pytest.mark.parametrize("said", LAYER_MISFITS)
def test_inputs_that_do_not_fit_are_refused(said: str) -> None:
    node = random_layer(9, count=4).node()
    with pytest.raises(Exception, match=f"edgeblt::DenseLayer: .*{said}"):
        node.open(kernel=True).run(None, node.inputs | LAYER_MISFITS[said](node))


WEIGHT_MISFITS: dict[str, tuple[dict[str, int], str | None]] = {
    "gate_bits is 5; use 4 or 8": ({"gate_bits": 5}, None),
    "down_block_size is 48; use 16": ({"down_block_size": 48}, None),
    "width is 0, not 1 to": ({"width": 0}, None),
    "attention_norm is": ({"width": 999}, None),
    "up_codes is": ({"intermediate": 998}, None),
    "heads do not share": ({"kv_num_heads": 7}, None),
    "output_codes is no initializer": ({}, "output_codes"),
    "mlp_norm is no initializer": ({}, "mlp_norm"),
}


@needs_library
@pytest.mark.parametrize("said", WEIGHT_MISFITS)
def test_weights_that_do_not_fit_are_refused_when_the_model_is_opened(said: str) -> None:
    node = random_layer(9, count=4).node()
    attributes, absent = WEIGHT_MISFITS[said]
    if said.startswith("up_codes"):  # the gate, which is checked before, fits
        weights = random_product(matmuls.DENSE, 1, 998, node.inputs["x"].shape[1], 8, 16, 1).weights
        attributes = attributes | {"gate_bits": 8, "gate_block_size": 16, "gate_blocks_per_scale": 1}
        node = replace(node, initializers=node.initializers | {f"gate_{key}": value for key, value in weights.items()})
    kept = {name: array for name, array in node.initializers.items() if name != absent}
    broken = replace(node, attributes=node.attributes | attributes, initializers=kept)
    with pytest.raises(Exception, match=f"edgeblt::DenseLayer: .*{said}"):
        open_without(broken, absent, node)


def open_without(node: Node, name: str | None, whole: Node) -> Any:
    """`node` opened; what it lacks is an input instead of an initializer."""
    if name is None:
        return node.open(kernel=True)
    model = onnx.load_from_string(whole.model())
    (weight,) = (weight for weight in model.graph.initializer if weight.name == name)
    model.graph.input.append(onnx.helper.make_tensor_value_info(name, weight.data_type, weight.dims))
    model.graph.initializer.remove(weight)
    return open_model(model.SerializeToString(), kernel=True)


# Cross-attention.


@dataclass(frozen=True)
class Cross:
    """Bytes, a carried row and new ones, of which each byte reads one from `offset` on.

    The new rows are given (LatentAttention), or the layer's part of them follows from the latents.
    """

    x: Floats
    norms: Floats  # [2, width]: of queries, of keys
    products: dict[str, Product]
    rows: Floats  # the carried row, then the new ones
    latents: Floats  # as many as new rows [L, vectors * width]
    index: NDArray[np.int64]
    heads: int
    kv_heads: int
    head_width: int
    vectors: int
    offset: int

    @property
    def parts(self) -> Doubles:
        """The layer's part of the given rows."""
        return self.rows[:, self.offset :][:, : 2 * self.kv_heads * self.head_width * self.vectors].astype(np.float64)

    @property
    def attributes(self) -> dict[str, int | float]:
        return {
            "num_heads": self.heads, "kv_num_heads": self.kv_heads, "head_dim": self.head_width,
            "vectors": self.vectors, "offset": self.offset, "scale": float(np.float32(self.head_width**-0.5)),
        }  # fmt: skip

    def attention_node(self, query: Floats) -> Node:
        rows: Arrays = {"carried_row": self.rows[:1], "new_rows": self.rows[1:], "latent_index": self.index}
        return Node(layers.LATENT, self.attributes, {"query": query, **rows}, {}, {"attended": 2})

    def node(self) -> Node:
        arrays, attributes = weights_of(self.products)
        sizes: dict[str, int | float] = {
            "width": self.x.shape[1], "attended": self.heads * self.head_width,
            "projected": 2 * self.kv_heads * self.head_width, "epsilon": 1e-5,
        }  # fmt: skip
        inputs: Arrays = {
            "x": self.x, "carried_row": self.rows[:1], "latents": self.latents, "latent_index": self.index,
        }  # fmt: skip
        norms = {"query_norm": self.norms[0], "key_norm": self.norms[1]}
        outputs = {"y": 2, "layer_rows": 2}
        return Node(layers.CROSS, self.attributes | sizes | attributes, inputs, norms | arrays, outputs)

    def attended(self, query: Doubles, parts: Doubles) -> Doubles:
        """The definition, a byte and a head at a time; `parts`: the layer's part of all rows."""
        size, result = self.kv_heads * self.head_width * self.vectors, np.empty(query.shape)
        for byte, row in enumerate(parts[self.index]):
            keys = row[:size].reshape(self.kv_heads, self.head_width, self.vectors)
            values = row[size:].reshape(self.kv_heads, self.vectors, self.head_width)
            for head in range(self.heads):
                place = slice(head * self.head_width, (head + 1) * self.head_width)
                group = head // (self.heads // self.kv_heads)
                scores = query[byte, place] @ keys[group] * self.head_width**-0.5
                shares = np.exp(scores - scores.max())
                result[byte, place] = shares @ values[group] / shares.sum()
        return result

    def layer_rows(self) -> Doubles:
        """The layer's part of the new rows."""
        lines = self.latents.reshape(-1, self.x.shape[1]).astype(np.float64)
        both = times(normalized(lines, self.norms[1], 1e-5), self.products["key"])
        grid = both.reshape(len(self.latents), self.vectors, 2, self.kv_heads, self.head_width)
        keys, values = grid[:, :, 0].transpose(0, 2, 3, 1), grid[:, :, 1].transpose(0, 2, 1, 3)
        size = self.vectors * self.kv_heads * self.head_width
        return np.concatenate([part.reshape(len(grid), size) for part in (keys, values)], axis=1)

    def exact(self, layer_rows: NDArray[Any]) -> Doubles:
        """`y`, given the layer's part of the new rows."""
        x, parts = self.x.astype(np.float64), np.concatenate([self.parts[:1], layer_rows])
        query = times(normalized(x, self.norms[0], 1e-5), self.products["query"])
        return 2 * x + times(self.attended(query, parts), self.products["output"])

    def only(self, bytes: slice) -> "Cross":
        return replace(self, x=self.x[bytes], index=self.index[bytes])


def random_cross(seed: int, count: int | None = None) -> Cross:
    chance = np.random.default_rng(seed)
    kv_heads, head_width, vectors = (
        int(chance.integers(1, 3)),
        16 * int(chance.integers(1, 4)),
        int(chance.integers(1, 12)),
    )
    heads, width = kv_heads * int(chance.integers(1, 4)), int(chance.integers(1, 200))
    offset, new = int(chance.integers(0, 50)), int(chance.integers(0, 4))
    row_width = offset + 2 * kv_heads * head_width * vectors + int(chance.integers(0, 9))
    count = count or int(chance.choice([1, 2, 5, 40]))
    products = {
        "query": some_product(chance, heads * head_width, width),
        "key": some_product(chance, 2 * kv_heads * head_width, width),
        "output": some_product(chance, width, heads * head_width),
    }
    x, rows = (
        chance.normal(size=(count, width)),
        chance.normal(size=(1 + new, row_width)) * chance.choice([0.0, 1.0, 5.0]),
    )
    norms, latents = chance.uniform(0.5, 1.5, (2, width)), chance.normal(size=(new, vectors * width))
    return Cross(
        x.astype(np.float32), norms.astype(np.float32), products, rows.astype(np.float32),
        latents.astype(np.float32), chance.integers(0, 1 + new, count), heads, kv_heads, head_width, vectors, offset,
    )  # fmt: skip


@at_every_level
@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 2**32 - 1))
def test_attention_to_latents_is_its_definition(level: str, seed: int) -> None:
    cross = random_cross(seed)
    query = np.random.default_rng(seed).normal(size=(len(cross.x), cross.heads * cross.head_width)).astype(np.float32)
    node = cross.attention_node(query)
    with using(level):
        before = native.runs(layers.LATENT)
        (found,) = node.open(kernel=True).run(None, node.inputs)
        assert native.runs(layers.LATENT) == before + 1
    (portable,) = node.open(kernel=False).run(None, node.inputs)
    expected = cross.attended(query.astype(np.float64), cross.parts)
    bound = 1e-5 * max(1.0, float(np.abs(cross.rows).max())) ** 2
    for result in (found, portable):
        assert float(np.abs(result - expected).max()) < bound


@at_every_level
@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 2**32 - 1))
def test_cross_attention_is_its_definition_and_the_same_in_any_company(level: str, seed: int) -> None:
    cross = random_cross(seed)
    with using(level):
        session, before = cross.node().open(kernel=True), native.runs(layers.CROSS)
        whole, made = session.run(None, cross.node().inputs)
        assert native.runs(layers.CROSS) == before + 1
        for byte in range(len(cross.x)):
            alone, _ = session.run(None, cross.only(slice(byte, byte + 1)).node().inputs)
            np.testing.assert_array_equal(alone[0], whole[byte])
        for latent in range(len(cross.latents)):
            one = replace(cross, latents=cross.latents[latent : latent + 1], index=np.zeros_like(cross.index))
            np.testing.assert_array_equal(session.run(None, one.node().inputs)[1][0], made[latent])
    for y, layer_rows in ((whole, made), cross.node().open(kernel=False).run(None, cross.node().inputs)):
        assert error(y, cross.exact(layer_rows)).max() < ONE_STEP
        assert layer_rows.shape == cross.layer_rows().shape
        if len(layer_rows):
            assert error(layer_rows, cross.layer_rows()).max() < ONE_STEP


@functools.cache
def single_bytes() -> list[tuple[Cross, bytes]]:
    """Cross-attentions of one byte, and as models."""
    return [(cross, cross.node().model()) for cross in (random_cross(seed, count=1) for seed in range(30))]


@at_every_level
def test_most_bytes_are_exact(level: str) -> None:
    errors, of_rows = [], []
    with using(level):
        for cross, model in single_bytes():
            found, made = open_model(model, kernel=True).run(None, cross.node().inputs)
            errors.append(float(error(found, cross.exact(made))[0]))
            of_rows += list(error(made, cross.layer_rows())) if len(made) else []
    assert np.quantile(errors, 0.7) < FLOAT32, np.sort(errors)
    assert np.quantile(of_rows, 0.7) < FLOAT32, np.sort(of_rows)


@needs_library
def test_without_latents_or_bytes_there_are_none_in_the_results() -> None:
    cross = random_cross(2)
    for some in (replace(cross, latents=cross.latents[:0], index=np.zeros_like(cross.index)), cross.only(slice(0))):
        for kernel in (True, False):
            y, made = some.node().open(kernel).run(None, some.node().inputs)
            assert y.shape == some.x.shape
            assert made.shape == some.layer_rows().shape


@pytest.mark.parametrize("kernel", [pytest.param(True, marks=needs_library), False])
def test_a_projection_is_the_product_or_has_no_rows(kernel: bool) -> None:
    product = some_product(np.random.default_rng(5), 40, 70)
    x = np.random.default_rng(6).normal(size=(3, 70)).astype(np.float32)
    attributes: dict[str, int | float] = {name: product.attributes[name] for name in matmuls.COMMON_ATTRIBUTES}
    nodes = [
        Node(name, attributes, {"x": x}, product.weights, {"y": 2}) for name in (matmuls.PROJECTION, matmuls.DENSE)
    ]
    projected, expected = (node.open(kernel).run(None, node.inputs)[0] for node in nodes)
    np.testing.assert_array_equal(projected, expected)
    assert nodes[0].open(kernel).run(None, {"x": x[:0]})[0].shape == (0, 40)


@needs_library
@pytest.mark.parametrize(("change", "said"), [
    ({"latent_index": np.array([0, 9])}, "latent_index is 9 for"),
    ({"latent_index": np.array([-1, 0])}, "latent_index is -1 for"),
    ({"latent_index": np.array([0])}, "latent_index is 1 of type 7"),
    ({"carried_row": np.zeros((1, 8), np.float32)}, "the layer ends at"),
    ({"latents": np.zeros((1, 3), np.float32)}, "latents is 1 x 3"),
])  # fmt: skip
def test_rows_that_do_not_fit_are_refused(change: Arrays, said: str) -> None:
    cross = random_cross(2, count=2)
    with pytest.raises(Exception, match=f"edgeblt::DenseCrossAttention: .*{said}"):
        cross.node().open(kernel=True).run(None, cross.node().inputs | change)


@needs_library
def test_heads_that_do_not_fit_are_refused_when_the_model_is_opened() -> None:
    node = random_cross(2).node()
    with pytest.raises(Exception, match=r"edgeblt::DenseCrossAttention: .* heads of 12 elements"):
        replace(node, attributes=node.attributes | {"head_dim": 12}).open(kernel=True)


# Which layers are one operator. The decoders of these models: 24 has heads of 16 elements and silu, 26 heads of 16 and
# another activation, 10 heads that are padded.

SPARSE = 'format = "int8"\nsymmetric = true\nsparsity = "2:4"\npruning = "magnitude"'


@pytest.mark.parametrize(("seed", "settings_", "layer", "cross"), [
    (24, 'format = "int8"', "DenseLayer", "DenseCrossAttention"),
    (24, 'format = "int4"\nblock_size = 16\nsymmetric = true', "DenseLayer", "DenseCrossAttention"),
    (24, SPARSE, "WindowAttention", "LatentAttention"),
    (24, 'format = "fp16"', "WindowAttention", "LatentAttention"),
    (24, 'format = "nf4"', "WindowAttention", "LatentAttention"),
    (26, 'format = "int8"', "WindowAttention", "DenseCrossAttention"),
    (10, 'format = "int8"', "WindowAttention", "LatentAttention"),
])  # fmt: skip
def test_dense_layers_are_one_operator(
    seed: int, settings_: str, layer: str, cross: str, exported: Callable[[int], Exported], tmp_path: Path
) -> None:
    (tmp_path / "recipe.toml").write_text(f"[decoder]\n{settings_}\n")
    bundle = export_bundle(exported(seed).checkpoint, tmp_path / "bundle", tmp_path / "recipe.toml").path
    model = onnx.load(bundle / "decoder.onnx")
    for part in (model.graph, *model.functions):
        name_contrib_ops(part)
    onnx.checker.check_model(model)
    config = exported(seed).model.bundle.manifest.config
    nodes = Counter(node.op_type for node in model.graph.node)
    operators = {"DenseLayer", "WindowAttention", "DenseCrossAttention", "LatentAttention"}
    assert {name: count for name, count in nodes.items() if name in operators} == {
        layer: config.decoder.layer_count, cross: config.decoder_cross_count,
    }  # fmt: skip
    assert not {"Unsqueeze", "Squeeze"} & nodes.keys()
    assert ("If" in nodes) == (cross == "LatentAttention")


def test_a_layer_with_fewer_channels_is_one_operator(tmp_path: Path) -> None:
    """Its gate is narrower than the configuration says."""
    config = tiny_models.random_config(24)
    config.decoder_config.intermediate_size = 256
    model = tiny_models.save_model(tiny_models.random_model(config, 24), tmp_path / "model")
    (tmp_path / "recipe.toml").write_text('[decoder]\nformat = "int8"\nchannels = "50%"\n')
    (tmp_path / "text").write_bytes(b"It was the best of times, it was the worst of times. " * 30)
    small = quantize_checkpoint(model, tmp_path / "out", tmp_path / "recipe.toml", tmp_path / "text")
    bundle = export_bundle(small, tmp_path / "bundle").path
    graph = onnx.load(bundle / "decoder.onnx", load_external_data=False).graph
    sizes = {
        attribute.i
        for node in graph.node
        for attribute in node.attribute
        if node.op_type == "DenseLayer" and attribute.name == "intermediate"
    }
    assert sizes == {128}
    assert np.isfinite(load(bundle).session().feed([1, 80, 90])).all()
