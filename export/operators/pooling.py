"""Pooling of the bytes of completed patches: the operators that compute it, and their portable bodies.

Of S = N + T bytes, those of the open patch and then the chunk's, `patch_index` names the completed patch each belongs
to, from 0 on, or their number P where the patch is still open. Values are float32, indices int64.

    PatchAttention  query [(P + 1) * vectors, heads * head_dim]    the row of every patch, the open one too
                    projected [S, 2 * kv heads * head_dim]         key and value of each byte
                    patch_index [S], patches [P + 1]               0 .. P
                    gives attended, as query
    DensePooling    byte_vectors [T, width], open_vectors [N, width], patch_index [T], open_index [N], patches [P + 1],
                    query_norm, key_norm [width], weights of projection, query, key (with value below it), output
                    gives patch_vectors [P, vectors * width]

DensePooling projects the maximum of a patch's bytes to `vectors` queries, which attend to the bytes, and adds the
queries twice: in transformers the module adds its input, and its caller adds it again.
"""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edgeblt.bundle.contract import EDGEBLT
from edgeblt.export.operators.function_writer import FLOAT, INT, FunctionWriter, function, reference
from edgeblt.export.operators.interleaved_weights import DenseForms
from edgeblt.export.operators.layers import BodyProducts, norm, opsets, product_attributes, product_inputs
from edgeblt.export.operators.matmuls import ALL_FORMS

PATCH, POOLING = "PatchAttention", "DensePooling"
POOLING_PRODUCTS = ("projection", "query", "key", "output")
PATCH_ATTRIBUTES = {"num_heads": INT, "kv_num_heads": INT, "head_dim": INT, "vectors": INT, "scale": FLOAT}
# width of a byte's vector, of a patch's, of all heads, and of a byte's key and value together
POOLING_SIZES = ("width", "pooled", "attended", "projected")
LOWEST = float(np.finfo(np.float32).min)

Inputs = dict[str, ir.Value]


def patch_attention_function(opset: int = 23) -> ir.Function:
    """`PatchAttention` in standard operators, in O(S * vectors), the sums in the order of the bytes."""
    names = ("query", "projected", "patch_index", "patches")
    inputs, writer = {name: ir.Value(name=name) for name in names}, FunctionWriter()
    heads, kv_heads, head_dim, vectors = (
        writer.op("Unsqueeze", writer.attribute(name), writer.ints(0))
        for name in ("num_heads", "kv_num_heads", "head_dim", "vectors")
    )
    group, lines = writer.op("Div", heads, kv_heads), writer.op("Mul", vectors, heads)
    width, index = writer.op("Mul", lines, head_dim), inputs["patch_index"]

    def shaped(value: ir.Value, *sizes: ir.Value) -> ir.Value:
        return writer.op("Reshape", value, writer.op("Concat", writer.ints(-1), *sizes, axis=0))

    def reduced(values: ir.Value, size: ir.Value, initial: float, reduction: str) -> ir.Value:
        return scatter(writer, filled(writer, inputs["patches"], size, initial), index, values, reduction)

    key, value = writer.ops("Split", inputs["projected"], outputs=2, axis=-1, num_outputs=2)
    one = writer.ints(1)
    key, value = (shaped(part, one, kv_heads, one, head_dim) for part in (key, value))
    scale = writer.op("Constant", value_float=reference("scale", "value_float", FLOAT))
    query = shaped(writer.op("Mul", inputs["query"], scale), vectors, kv_heads, group, head_dim)
    products = writer.op("Mul", writer.op("Gather", query, index, axis=0), key)
    scores = shaped(writer.op("ReduceSum", products, writer.ints(-1), keepdims=0), lines)
    highest = writer.op("Gather", reduced(scores, lines, LOWEST, "max"), index, axis=0)
    weight = writer.op("Exp", writer.op("Sub", scores, highest))
    weighted = shaped(writer.op("Mul", shaped(weight, vectors, kv_heads, group, one), value), width)
    summed = shaped(reduced(weighted, width, 0.0, "add"), lines, head_dim)
    divisor = writer.op("Unsqueeze", reduced(weight, lines, 0.0, "add"), writer.ints(-1))
    attended = shaped(writer.op("Div", summed, divisor), writer.op("Mul", heads, head_dim))
    return function((EDGEBLT, PATCH), PATCH_ATTRIBUTES, inputs, [attended], writer, opsets(opset))


def dense_pooling_function(opset: int = 23, forms: DenseForms = ALL_FORMS) -> ir.Function:
    """`DensePooling` in the operators it is made of, none of which runs where no patch is completed."""
    rows = ("byte_vectors", "open_vectors", "patch_index", "open_index", "patches")
    names = (*rows, "query_norm", "key_norm", *product_inputs(POOLING_PRODUCTS))
    inputs, writer = {name: ir.Value(name=name) for name in names}, FunctionWriter()

    def pooled(branch: FunctionWriter) -> list[ir.Value]:
        return [_pool(branch, BodyProducts(branch, forms, inputs), inputs)]

    def nothing(branch: FunctionWriter) -> list[ir.Value]:
        width = branch.op("Unsqueeze", branch.attribute("pooled"), branch.ints(0))
        return [branch.op("ConstantOfShape", branch.op("Concat", branch.ints(0), width, axis=0))]

    any_completed = writer.op("Greater", writer.op("Shape", inputs["patches"]), writer.ints(1))
    outputs = writer.branch(any_completed, pooled, nothing)
    sizes = dict.fromkeys(POOLING_SIZES, INT)
    attributes = {**PATCH_ATTRIBUTES, "epsilon": FLOAT, **sizes, **product_attributes(POOLING_PRODUCTS)}
    return function((EDGEBLT, POOLING), attributes, inputs, outputs, writer, opsets(opset))


def _pool(writer: FunctionWriter, products: BodyProducts, inputs: Mapping[str, ir.Value]) -> ir.Value:
    vectors = writer.op("Concat", inputs["open_vectors"], inputs["byte_vectors"], axis=0)
    index = writer.op("Concat", inputs["open_index"], inputs["patch_index"], axis=0)
    width = writer.op("Unsqueeze", writer.attribute("width"), writer.ints(0))
    largest = scatter(writer, filled(writer, inputs["patches"], width, LOWEST), index, vectors, "max")
    queries = products.with_spare_row("projection", largest, "width", "pooled")
    queries = writer.op("Reshape", queries, writer.op("Concat", writer.ints(-1), width, axis=0))
    query = products.with_spare_row("query", norm(writer, queries, inputs["query_norm"]), "width", "attended")
    projected = products.with_spare_row("key", norm(writer, vectors, inputs["key_norm"]), "width", "projected")
    attended = writer.op(
        PATCH, query, projected, index, inputs["patches"], domain=EDGEBLT,
        **{name: reference(name, kind=kind) for name, kind in PATCH_ATTRIBUTES.items()},
    )  # fmt: skip
    output = products.with_spare_row("output", attended, "attended", "width")
    total = writer.op("Add", output, writer.op("Add", queries, queries))
    pooled = writer.op("Unsqueeze", writer.attribute("pooled"), writer.ints(0))
    rows = writer.op("Reshape", total, writer.op("Concat", writer.ints(-1), pooled, axis=0))
    return writer.op("Slice", rows, writer.ints(0), writer.ints(-1), writer.ints(0))


def scatter(writer: FunctionWriter, data: ir.Value, index: ir.Value, updates: ir.Value, reduction: str) -> ir.Value:
    """Rows of `updates` [S, width] reduced into the rows of `data` that `index` names."""
    wide = writer.op("Expand", writer.op("Unsqueeze", index, writer.ints(1)), writer.op("Shape", updates))
    return writer.op("ScatterElements", data, wide, updates, axis=0, reduction=reduction)


def filled(writer: FunctionWriter, patches: ir.Value, width: ir.Value, value: float) -> ir.Value:
    """A constant `value`: [P + 1, width]."""
    shape = writer.op("Concat", writer.op("Shape", patches), width, axis=0)
    return writer.op("ConstantOfShape", shape, value=ir.tensor(np.array([value], np.float32)))
