"""`edgeblt::HashEmbedding`, `PatchAttention` and `DensePooling`: kernels and portable bodies against float64, and rows
against themselves in other company."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeblt.bundle.contract import EDGEBLT, MICROSOFT
from edgeblt.export.operators import matmuls
from edgeblt.export.operators.hash_embedding import HASHED, TableForm, hash_embedding_function
from edgeblt.export.operators.pooling import PATCH, POOLING, dense_pooling_function, patch_attention_function
from edgeblt.quant.formats.weight_format import unpack
from edgeblt.runtime import native
from fuzzed_operators import Case, hash_embedding, patch_attention
from test_dense_layer import FLOAT32, ONE_STEP, normalized, some_product, times, weights_of
from test_native import Product, at_every_level, open_model, using

Doubles = NDArray[np.float64]
KINDS = {
    "float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16,
    "int64": ir.DataType.INT64, "uint8": ir.DataType.UINT8,
}  # fmt: skip


def opened(case: Case, kernel: bool, functions: list[ir.Function]) -> Any:
    return open_model(model_of(case, functions), kernel)


def model_of(case: Case, functions: list[ir.Function]) -> bytes:
    """A model of one node with the body of its operator, the first of `functions`."""
    values: dict[str, ir.Value] = {}
    for name, array in case.inputs.items():
        if array is None:
            continue
        kind = KINDS[str(array.dtype)]
        if name in case.initializers:
            values[name] = ir.Value(name=name, type=ir.TensorType(kind), const_value=ir.tensor(array, name=name))
            values[name].shape = ir.Shape(array.shape)
        else:
            values[name] = ir.val(name, kind, [f"{name}_{axis}" for axis in range(array.ndim)])
    outputs = [ir.val(name, ir.DataType.FLOAT, ["rows", "columns"]) for name in case.outputs]
    attributes: list[ir.Attr] = [
        ir.AttrFloat32(name, value) if isinstance(value, float) else ir.AttrInt64(name, value)
        for name, value in case.attributes.items()
    ]
    operands = [values.get(formal.name or "") for formal in functions[0].inputs]
    node = ir.Node(EDGEBLT, case.operator, operands, attributes, outputs=outputs)
    graph = ir.Graph(
        [value for name, value in values.items() if name not in case.initializers], outputs, nodes=[node],
        initializers=[value for name, value in values.items() if name in case.initializers],
        opset_imports={"": 23, MICROSOFT: 1, EDGEBLT: 1}, name="node",
    )  # fmt: skip
    model = ir.Model(graph, ir_version=11, functions=functions)
    serialized: bytes = ir.serde.serialize_model(model).SerializeToString()
    return serialized


def feed(case: Case) -> dict[str, Any]:
    return {name: array for name, array in case.inputs.items() if array is not None and name not in case.initializers}


def given_case(make: Callable[[np.random.Generator], Case], seed: int, suits: Callable[[Case], bool]) -> Case:
    cases = (make(np.random.default_rng([seed, number])) for number in range(1000))
    return next(case for case in cases if suits(case))


# Hash embedding.


def has_rows_of_whole_bytes(case: Case) -> bool:
    codes = (case.attributes[f"{name}_bits"] * case.attributes["width"] % 8 for name in ("byte", "hash"))
    return len(feed(case)["windows"]) > 0 and not any(codes)


def table(case: Case, name: str) -> Doubles:
    """All rows, as their format says."""
    values, scales, points = (case.inputs[f"{name}_{part}"] for part in ("values", "scales", "zero_points"))
    assert values is not None
    if scales is None:
        return values.astype(np.float64)
    width, bits, block = (
        case.attributes["width"],
        case.attributes[f"{name}_bits"],
        case.attributes[f"{name}_block_size"],
    )
    blocks = scales.shape[1]
    zeros = np.full(scales.shape, 1 << (bits - 1)) if points is None else unpack(points, bits, blocks)
    scales, zeros = (np.repeat(some.astype(np.float64), block, axis=1)[:, :width] for some in (scales, zeros))
    result: Doubles = (unpack(values, bits, width) - zeros) * scales
    return result


def embedded(case: Case) -> Doubles:
    """The definition, in Python's integers where hashes wrap."""
    windows, coefficients, vocab = case.inputs["windows"], case.inputs["coefficients"], case.attributes["vocab_size"]
    assert windows is not None
    assert coefficients is not None
    bytes, hashes = table(case, "byte"), table(case, "hash")
    result = bytes[windows[:, -1]]
    for number in range(coefficients.shape[1]):
        sums = [sum(int(id) * int(factor) for id, factor in zip(row, coefficients[:, number], strict=True))
                for row in windows]  # fmt: skip
        wrapped = [(total + 2**63) % 2**64 - 2**63 for total in sums]
        result = result + hashes[[number * vocab + total % vocab for total in wrapped]]
    return result


def form(case: Case, name: str) -> TableForm:
    return TableForm(sum(case.inputs[f"{name}_{part}"] is not None for part in ("values", "scales", "zero_points")))


def embedding_body(case: Case) -> list[ir.Function]:
    return [hash_embedding_function(23, form(case, "byte"), form(case, "hash"))]


@at_every_level
@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 2**32 - 1))
def test_hash_embedding_is_its_definition_and_the_same_in_any_company(level: str, seed: int) -> None:
    case = given_case(hash_embedding, seed, has_rows_of_whole_bytes)
    expected, windows = embedded(case), feed(case)["windows"]
    bound = (
        1e-6 * (len(feed(case)["windows"][0]) + 2) * max(np.abs(table(case, name)).max() for name in ("byte", "hash"))
    )
    with using(level):
        before = native.runs(HASHED)
        session = opened(case, True, embedding_body(case))
        (found,) = session.run(None, {"windows": windows})
        assert native.runs(HASHED) == before + 1
        for row in range(len(windows)):
            np.testing.assert_array_equal(session.run(None, {"windows": windows[row : row + 1]})[0][0], found[row])
    assert np.abs(found - expected).max() <= bound


@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_body_of_hash_embedding_agrees(seed: int) -> None:
    case = given_case(hash_embedding, seed, has_rows_of_whole_bytes)
    (found,) = opened(case, False, embedding_body(case)).run(None, feed(case))
    bound = 1e-5 * max(np.abs(table(case, name)).max() for name in ("byte", "hash"))
    assert np.abs(found - embedded(case)).max() <= bound


@pytest.mark.parametrize("id", [-1, 260, 2**62])
def test_ids_that_the_table_lacks_are_refused(id: int) -> None:
    if native.library_path() is None:
        pytest.skip("no native library")
    case = given_case(hash_embedding, 1, has_rows_of_whole_bytes)
    windows = feed(case)["windows"].copy()
    windows[-1, -1] = id
    with pytest.raises(Exception, match=f"edgeblt::HashEmbedding: windows names id {id} of 260"):
        opened(case, True, embedding_body(case)).run(None, {"windows": windows})


# Attention within patches.


def attended(case: Case, query: Doubles, projected: Doubles, index: NDArray[np.int64]) -> Doubles:
    """The definition, a patch, a vector and a head at a time; zeros for a patch without bytes."""
    heads, kv_heads, width, vectors = (
        case.attributes[name] for name in ("num_heads", "kv_num_heads", "head_dim", "vectors")
    )
    queries, both = query.reshape(-1, vectors, heads, width), projected.reshape(len(projected), 2, kv_heads, width)
    result = np.zeros(queries.shape)
    for patch in set(index.tolist()):
        keys, values = both[index == patch].transpose(1, 2, 0, 3)
        for vector in range(vectors):
            for head in range(heads):
                group = head // (heads // kv_heads)
                scores = keys[group] @ queries[patch, vector, head] * case.attributes["scale"]
                shares = np.exp(scores - scores.max())
                result[patch, vector, head] = shares @ values[group] / shares.sum()
    return result.reshape(query.shape)


@at_every_level
@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 2**32 - 1))
def test_attention_within_patches_is_its_definition(level: str, seed: int) -> None:
    case = given_case(patch_attention, seed, lambda case: len(feed(case)["patch_index"]) > 0)
    inputs = feed(case)
    query, projected = (inputs[name].astype(np.float64) for name in ("query", "projected"))
    expected = attended(case, query, projected, inputs["patch_index"])
    with using(level):
        before = native.runs(PATCH)
        (found,) = opened(case, True, [patch_attention_function()]).run(None, inputs)
        assert native.runs(PATCH) == before + 1
    (portable,) = opened(case, False, [patch_attention_function()]).run(None, inputs)
    rows = np.isin(np.arange(len(query)) // case.attributes["vectors"], inputs["patch_index"])
    assert np.abs(found - expected).max() < 1e-5 * np.abs(projected).max()
    assert np.abs(portable - expected)[rows].max() < 1e-5 * np.abs(projected).max()


# Pooling.


def random_pooling(seed: int, completed: int = 3) -> tuple[Case, dict[str, Product]]:
    """Completed patches with bytes of each, in the open patch and in the chunk, and others of none."""
    chance = np.random.default_rng(seed)
    kv_heads, head_width, vectors = int(chance.integers(1, 3)), 16 * int(chance.integers(1, 3)), 2
    heads, width = kv_heads * int(chance.integers(1, 3)), int(chance.integers(1, 100))
    sizes = {
        "projection": (vectors * width, width), "query": (heads * head_width, width),
        "key": (2 * kv_heads * head_width, width), "output": (width, heads * head_width),
    }  # fmt: skip
    products = {name: some_product(chance, *size) for name, size in sizes.items()}
    weights, rounding = weights_of(products)
    opened_rows, rows = int(chance.integers(0, 9)), int(chance.integers(completed + 1, 30))
    index = np.sort(np.concatenate([np.arange(completed), chance.integers(0, completed + 1, rows - completed)]))
    norms = {name: chance.uniform(0.5, 1.5, width).astype(np.float32) for name in ("query_norm", "key_norm")}
    inputs: dict[str, Any] = {
        "byte_vectors": chance.normal(size=(rows, width)).astype(np.float32),
        "open_vectors": chance.normal(size=(opened_rows, width)).astype(np.float32),
        "patch_index": index, "open_index": np.zeros(opened_rows, np.int64), "patches": np.arange(completed + 1),
        **norms, **weights,
    }  # fmt: skip
    attributes: dict[str, Any] = {
        "num_heads": heads, "kv_num_heads": kv_heads, "head_dim": head_width, "vectors": vectors,
        "scale": float(np.float32(head_width**-0.5)), "epsilon": 1e-5, "width": width, "pooled": vectors * width,
        "attended": heads * head_width, "projected": 2 * kv_heads * head_width, **rounding,
    }  # fmt: skip
    return Case(POOLING, attributes, inputs, frozenset([*norms, *weights]), ("patch_vectors",)), products


def pooled(case: Case, products: dict[str, Product]) -> Doubles:
    """The definition, in float64 but for the rounding of products' inputs."""
    given: dict[str, Any] = dict(case.inputs)
    vectors = np.concatenate([given["open_vectors"], given["byte_vectors"]]).astype(np.float64)
    index = np.concatenate([given["open_index"], given["patch_index"]])
    count, width, epsilon = len(given["patches"]) - 1, case.attributes["width"], case.attributes["epsilon"]
    largest = np.stack([vectors[index == patch].max(axis=0) for patch in range(count)])
    queries = times(largest, products["projection"]).reshape(-1, width)
    query = times(normalized(queries, given["query_norm"], epsilon), products["query"])
    projected = times(normalized(vectors, given["key_norm"], epsilon), products["key"])
    inside = index < count
    result = attended(case, query, projected[inside], index[inside])
    total: Doubles = (2 * queries + times(result, products["output"])).reshape(count, -1)
    return total


@functools.cache
def pooling_bodies() -> list[ir.Function]:
    return [dense_pooling_function(), patch_attention_function(), matmuls.dense_matmul_function()]


def largest_error(found: NDArray[Any], expected: Doubles) -> Doubles:
    result: Doubles = np.abs(found - expected).max(axis=1) / np.abs(expected).max()
    return result


@at_every_level
@settings(deadline=None, max_examples=6)
@given(seed=st.integers(0, 2**32 - 1))
def test_pooling_is_its_definition_and_the_same_in_any_company(level: str, seed: int) -> None:
    case, products = random_pooling(seed)
    with using(level):
        session, before = opened(case, True, pooling_bodies()), native.runs(POOLING)
        (found,) = session.run(None, feed(case))
        assert native.runs(POOLING) == before + 1
        for patch in range(len(found)):
            alone, inputs = feed(case), feed(case)["patch_index"]
            alone["patch_index"] = np.where(inputs == patch, 0, 1)
            alone["open_index"] = np.full(len(alone["open_index"]), int(patch > 0))
            (row,) = session.run(None, alone | {"patches": np.arange(2)})
            np.testing.assert_array_equal(row[0], found[patch])
    assert largest_error(found, pooled(case, products)).max() < ONE_STEP


@settings(deadline=None, max_examples=6)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_body_of_pooling_agrees(seed: int) -> None:
    case, products = random_pooling(seed)
    (found,) = opened(case, False, pooling_bodies()).run(None, feed(case))
    assert largest_error(found, pooled(case, products)).max() < ONE_STEP


@functools.cache
def single_patches() -> list[tuple[Case, bytes, Doubles]]:
    """Poolings to one patch, as models, and what they are by definition."""
    some = [random_pooling(seed, completed=1) for seed in range(30)]
    return [(case, model_of(case, pooling_bodies()), pooled(case, products)) for case, products in some]


@at_every_level
def test_most_patches_are_exact(level: str) -> None:
    """But for the few values next to the border of two steps."""
    errors = []
    with using(level):
        for case, model, exact in single_patches():
            (found,) = open_model(model, kernel=True).run(None, feed(case))
            errors.append(float(largest_error(found, exact)[0]))
    assert np.quantile(errors, 0.6) < FLOAT32, np.sort(errors)


@pytest.mark.parametrize("kernel", [False, True])
def test_no_completed_patch_gives_no_vectors(kernel: bool) -> None:
    case, _ = random_pooling(4)
    inputs = feed(case)
    none = {"patch_index": np.zeros_like(inputs["patch_index"]), "patches": np.arange(1)}
    (found,) = opened(case, kernel, pooling_bodies()).run(None, inputs | none)
    assert found.shape == (0, case.attributes["pooled"])


@pytest.mark.parametrize("value", [-1, 4, 2**62, -(2**63)])
def test_a_byte_of_no_patch_is_refused(value: int) -> None:
    if native.library_path() is None:
        pytest.skip("no native library")
    case, _ = random_pooling(4)
    index = feed(case)["patch_index"].copy()
    index[-1] = value
    case = replace(case, inputs=case.inputs | {"patch_index": index})
    with pytest.raises(Exception, match=f"edgeblt::DensePooling: a byte is of patch {value}; it must be 0 to 3"):
        opened(case, True, pooling_bodies()).run(None, feed(case))
