"""Whole layers of domain `edgeblt`: the operators that compute one, and their portable bodies.

A node costs ONNX Runtime about as long as a small product takes, so where a layer's weights are all dense int8 or int4
its kernel computes all of it. Bodies are made as those of `matmuls.py`, with one spare row for the whole layer. Values
are [T, width], float32. Weights, `product_inputs` in the order of the products, and norms are initializers.

    DenseLayer           x, past_key, past_value, total_length, cosines, sines    as WindowAttention
                         attention_norm, mlp_norm [width], weights of query (with key and value below it), output,
                         gate, up, down, and places, pages as WindowAttention
                         gives y, present_key, present_value
    LatentAttention      query [T, heads * head_dim]
                         carried_row [K, R], new_rows [L, R]     keys and values of latents, of all layers
                         latent_index int64 [T]                  below K: a carried row; K + j: new_rows[j]
                         gives attended, as query
    DenseCrossAttention  x, carried_row, latents [L, vectors * width], latent_index, query_norm, key_norm [width],
                         weights of query, key (with value below it), output
                         gives 2 * x + output(attended), and layer_rows [L, keys and values]: the layer's part of the
                         new latents' rows, which it attends to

A row holds, from `offset` on, the layer's keys [kv heads, head_dim, vectors] and values [kv heads, vectors, head_dim].
"""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgeblt.bundle.contract import EDGEBLT, MICROSOFT, CacheFormat
from edgeblt.export.operators.function_writer import FLOAT, INT, FunctionWriter, function, reference
from edgeblt.export.operators.interleaved_weights import DenseForms
from edgeblt.export.operators.matmuls import (
    ALL_FORMS,
    ATTENTION_ATTRIBUTES,
    BATCH_CACHE_INPUTS,
    ROUNDING_ATTRIBUTES,
    any_rows,
    attention,
    dense_product,
    no_rows,
    with_spare_row,
    without_spare_row,
)

LAYER, LATENT, CROSS = "DenseLayer", "LatentAttention", "DenseCrossAttention"
LAYER_PRODUCTS = ("query", "output", "gate", "up", "down")
CROSS_PRODUCTS = ("query", "key", "output")
CACHE_INPUTS = ("past_key", "past_value", "total_length", "cosines", "sines")
ROW_INPUTS = ("carried_row", "new_rows", "latent_index")
CROSS_INPUTS = ("carried_row", "latents", "latent_index", "query_norm", "key_norm")
# width of x, of all heads of a query, and of a vector's keys and values together
CROSS_SIZES = ("width", "attended", "projected")
# width of x, of query, key and value together, of all heads, and of the gate
LAYER_SIZES = ("width", "projected", "attended", "intermediate")
LATENT_ATTRIBUTES = {
    "num_heads": INT, "kv_num_heads": INT, "head_dim": INT, "vectors": INT, "offset": INT, "scale": FLOAT,
}  # fmt: skip

Inputs = dict[str, ir.Value]


def product_inputs(products: Sequence[str]) -> tuple[str, ...]:
    """The codes of all, then their scales, then their zero points, which may be absent."""
    return tuple(f"{product}_{part}" for part in ("codes", "scales", "zero_points") for product in products)


def product_attributes(products: Sequence[str]) -> dict[str, str]:
    return {f"{product}_{name}": INT for product in products for name in ROUNDING_ATTRIBUTES}


def dense_layer_function(opset: int = 23, forms: DenseForms = ALL_FORMS, kv_cache: CacheFormat = "fp32") -> ir.Function:
    """`DenseLayer` in the operators it is made of."""
    names = ("x", *CACHE_INPUTS, "attention_norm", "mlp_norm", *product_inputs(LAYER_PRODUCTS), *BATCH_CACHE_INPUTS)
    inputs, writer = {name: ir.Value(name=name) for name in names}, FunctionWriter()
    x = with_spare_row(writer, inputs["x"])
    products = BodyProducts(writer, forms, inputs)
    projected = products.of("query", norm(writer, x, inputs["attention_norm"]), "width", "projected")
    attended, *presents = attention(writer, projected, inputs, kv_cache)
    output = products.of("output", attended, "attended", "width")
    normed, _, _, total = writer.ops(
        "SkipSimplifiedLayerNormalization", output, x, inputs["mlp_norm"],
        outputs=4, domain=MICROSOFT, epsilon=reference("epsilon", kind=FLOAT),
    )  # fmt: skip
    gate = products.of("gate", normed, "width", "intermediate")
    gate = writer.op("QuickGelu", gate, domain=MICROSOFT, alpha=1.0)  # x * sigmoid(x)
    gated = writer.op("Mul", gate, products.of("up", normed, "width", "intermediate"))
    y = writer.op("Add", products.of("down", gated, "intermediate", "width"), total)
    y = without_spare_row(writer, y)
    sizes = dict.fromkeys(LAYER_SIZES, INT)
    attributes = {**ATTENTION_ATTRIBUTES, "epsilon": FLOAT, **sizes, **product_attributes(LAYER_PRODUCTS)}
    return function((EDGEBLT, LAYER), attributes, inputs, [y, *presents], writer, opsets(opset))


def latent_attention_function(opset: int = 23) -> ir.Function:
    """`LatentAttention` in standard operators."""
    inputs, writer = {name: ir.Value(name=name) for name in ("query", *ROW_INPUTS)}, FunctionWriter()
    kv_heads, head_dim, vectors, offset = (
        writer.op("Unsqueeze", writer.attribute(name), writer.ints(0))
        for name in ("kv_num_heads", "head_dim", "vectors", "offset")
    )
    size = writer.op("Mul", writer.op("Mul", kv_heads, head_dim), vectors)
    middle = writer.op("Add", offset, size)
    rows = writer.op("Concat", inputs["carried_row"], inputs["new_rows"], axis=0)
    found = writer.op("Gather", rows, inputs["latent_index"], axis=0)

    def part(begin: ir.Value, *shape: ir.Value) -> ir.Value:
        cut = writer.op("Slice", found, begin, writer.op("Add", begin, size), writer.ints(1))
        return writer.op("Reshape", cut, writer.op("Concat", writer.ints(-1), kv_heads, *shape, axis=0))

    heads = writer.op("Unsqueeze", writer.attribute("num_heads"), writer.ints(0))
    group = writer.op("Div", heads, kv_heads)
    grid = writer.op("Concat", writer.ints(-1), kv_heads, group, head_dim, axis=0)
    query = writer.op("Reshape", inputs["query"], grid)
    products = writer.op("MatMul", query, part(offset, head_dim, vectors))
    scores = writer.op("Mul", products, writer.op("Constant", value_float=reference("scale", "value_float", FLOAT)))
    attended = writer.op("MatMul", writer.op("Softmax", scores, axis=-1), part(middle, vectors, head_dim))
    flat = writer.op("Concat", writer.ints(-1), writer.op("Mul", heads, head_dim), axis=0)
    outputs = [writer.op("Reshape", attended, flat)]
    return function((EDGEBLT, LATENT), LATENT_ATTRIBUTES, inputs, outputs, writer, opsets(opset))


def dense_cross_attention_function(opset: int = 23, forms: DenseForms = ALL_FORMS) -> ir.Function:
    """`DenseCrossAttention` in the operators it is made of."""
    names = ("x", *CROSS_INPUTS, *product_inputs(CROSS_PRODUCTS))
    inputs, writer = {name: ir.Value(name=name) for name in names}, FunctionWriter()
    layer_rows = _layer_rows(writer, forms, inputs)
    offset = writer.op("Unsqueeze", writer.attribute("offset"), writer.ints(0))
    end = writer.op("Add", offset, writer.op("Shape", layer_rows, start=1, end=2))
    carried = writer.op("Slice", inputs["carried_row"], offset, end, writer.ints(1))
    x = with_spare_row(writer, inputs["x"])
    products = BodyProducts(writer, forms, inputs)
    query = products.of("query", norm(writer, x, inputs["query_norm"]), "width", "attended")
    index = writer.op("Pad", inputs["latent_index"], writer.ints(0, 1))
    heads = {name: reference(name, kind=kind) for name, kind in LATENT_ATTRIBUTES.items()}
    attended = writer.op(LATENT, query, carried, layer_rows, index, domain=EDGEBLT, **heads | {"offset": 0})
    output = products.of("output", attended, "attended", "width")
    y = without_spare_row(writer, writer.op("Add", output, writer.op("Add", x, x)))
    attributes = {
        **LATENT_ATTRIBUTES, "epsilon": FLOAT, **dict.fromkeys(CROSS_SIZES, INT), **product_attributes(CROSS_PRODUCTS)
    }  # fmt: skip
    return function((EDGEBLT, CROSS), attributes, inputs, [y, layer_rows], writer, opsets(opset))


def _layer_rows(writer: FunctionWriter, forms: DenseForms, inputs: Inputs) -> ir.Value:
    """The layer's part of the new latents' rows [L, keys and values]."""

    def projected(branch: FunctionWriter) -> list[ir.Value]:
        width, kv_heads, head_dim, vectors = (
            branch.op("Unsqueeze", branch.attribute(name), branch.ints(0))
            for name in ("width", "kv_num_heads", "head_dim", "vectors")
        )
        lines = branch.op("Reshape", inputs["latents"], branch.op("Concat", branch.ints(-1), width, axis=0))
        normed = norm(branch, lines, inputs["key_norm"])
        both = BodyProducts(branch, forms, inputs).with_spare_row("key", normed, "width", "projected")
        grid = branch.op("Concat", branch.ints(-1), vectors, branch.ints(2), kv_heads, head_dim, axis=0)
        key, value = branch.ops("Split", branch.op("Reshape", both, grid), outputs=2, axis=2, num_outputs=2)
        key = branch.op("Transpose", key, perm=[0, 2, 3, 4, 1])  # [L, 1, kv heads, head_dim, vectors]
        value = branch.op("Transpose", value, perm=[0, 2, 3, 1, 4])  # [L, 1, kv heads, vectors, head_dim]
        flat = branch.ints(0, -1)
        return [branch.op("Concat", branch.op("Reshape", key, flat), branch.op("Reshape", value, flat), axis=1)]

    def nothing(branch: FunctionWriter) -> list[ir.Value]:
        return [no_rows(branch, branch.op("Mul", branch.attribute("projected"), branch.attribute("vectors")))]

    return writer.branch(any_rows(writer, inputs["latents"]), projected, nothing)[0]


def norm(writer: FunctionWriter, value: ir.Value, weight: ir.Value) -> ir.Value:
    return writer.op(
        "SimplifiedLayerNormalization", value, weight, axis=-1, epsilon=reference("epsilon", kind=FLOAT), stash_type=1
    )


@dataclass(frozen=True)
class BodyProducts:
    """Products of a body, whose inputs are their weights."""

    writer: FunctionWriter
    forms: DenseForms
    inputs: Inputs

    def of(self, product: str, value: ir.Value, columns: str, rows: str) -> ir.Value:
        """`value` times the weights of `product`; `columns` and `rows` name the attributes of their sizes."""
        weights = [self.inputs[f"{product}_{part}"] for part in ("codes", "scales", "zero_points")]
        rounding = {name: f"{product}_{name}" for name in ROUNDING_ATTRIBUTES}
        return dense_product(self.writer, self.forms, value, weights, {"K": columns, "N": rows, **rounding})

    def with_spare_row(self, product: str, value: ir.Value, columns: str, rows: str) -> ir.Value:
        """The same of a value that no spare row follows."""
        return without_spare_row(self.writer, self.of(product, with_spare_row(self.writer, value), columns, rows))


def opsets(opset: int) -> dict[str, int]:
    return {"": opset, MICROSOFT: 1, EDGEBLT: 1}
