"""`edgeblt::HashEmbedding`: the embedding of each byte plus a row of every hash table, and its portable body.

    windows             int64 [T, W]       each id after the ids that its n-grams read
    coefficients        int64 [W, tables]  an id's factor in each table's hash
    byte_values         a table by id
    hash_values         a table by hash, the tables one below the other, `vocab_size` rows each
    gives vectors       float32 [T, width]

A table is three initializers: values, scales and zero_points, with the attributes bits and block_size. In 16 or 32
bits the values are floats [rows, width], and the others are absent. In 4 or 8 bits they are codes, packed, uint8
[rows, width * bits / 8], with scales [rows, blocks] and zero points, packed, uint8 [rows, ceil(blocks * bits / 8)],
which are absent where all are the middle of the codes.

The kernel computes a row in float32. The body rounds what it looks up to the type of the scales first.
"""

from enum import IntEnum

import onnx_ir as ir

from edgeblt.bundle.contract import EDGEBLT, MICROSOFT
from edgeblt.export.operators.function_writer import INT, FunctionWriter, function, reference
from edgeblt.export.operators.matmuls import with_spare_row, without_spare_row

HASHED = "HashEmbedding"
TABLES = ("byte", "hash")
TABLE_PARTS = ("values", "scales", "zero_points")
TABLE_ATTRIBUTES = ("bits", "block_size")

Inputs = dict[str, ir.Value]


class TableForm(IntEnum):
    """Contents of a table, by the number of its inputs."""

    FLOATS = 1
    SYMMETRIC_CODES = 2
    CODES = 3


def hash_embedding_function(
    opset: int = 23, byte: TableForm = TableForm.FLOATS, hash: TableForm = TableForm.FLOATS
) -> ir.Function:
    """`HashEmbedding` of tables in these forms in standard operators."""
    parts = [f"{table}_{part}" for table in TABLES for part in TABLE_PARTS]
    inputs = {name: ir.Value(name=name) for name in ("windows", "coefficients", *parts)}
    writer = FunctionWriter()
    ids = writer.op("Gather", inputs["windows"], writer.constant_int(-1), axis=1)
    of_byte = _lookup(writer, inputs, "byte", ids, byte)
    # The spare row is there because ReduceSum adds up a single row in another order.
    places = _places(writer, with_spare_row(writer, inputs["windows"]), inputs["coefficients"])
    hashed = _lookup(writer, inputs, "hash", places, hash)
    total = without_spare_row(writer, writer.op("ReduceSum", hashed, writer.ints(1), keepdims=0))
    vectors = writer.op("Add", of_byte, total)
    names = ("width", "vocab_size", *(f"{table}_{name}" for table in TABLES for name in TABLE_ATTRIBUTES))
    opsets = {"": opset, MICROSOFT: 1}
    return function((EDGEBLT, HASHED), dict.fromkeys(names, INT), inputs, [vectors], writer, opsets)


def _places(writer: FunctionWriter, windows: ir.Value, coefficients: ir.Value) -> ir.Value:
    """Rows of the hash tables int64 [T, tables].

    A hash is the sum of ids times their factors, which wraps in int64 as ONNX Runtime's MatMul does on the CPU.
    """
    vocab_size = writer.attribute("vocab_size")
    remainder = writer.op("Mod", writer.op("MatMul", windows, coefficients), vocab_size)
    count = writer.op("Squeeze", writer.op("Shape", coefficients, start=1, end=2), writer.ints(0))
    tables = writer.op("Range", writer.constant_int(0), count, writer.constant_int(1))
    return writer.op("Add", remainder, writer.op("Mul", tables, vocab_size))


def _lookup(writer: FunctionWriter, inputs: Inputs, table: str, rows: ir.Value, form: TableForm) -> ir.Value:
    """float32 [.., width]: `rows` of a table."""
    values, *parameters = (inputs[f"{table}_{part}"] for part in TABLE_PARTS[:form])
    if form == TableForm.FLOATS:
        found = writer.op("Gather", values, rows)
    else:
        found = writer.op(
            "GatherBlockQuantized", values, rows, *parameters, domain=MICROSOFT, gather_axis=0, quantize_axis=1,
            **{name: reference(f"{table}_{name}", name) for name in TABLE_ATTRIBUTES},
        )  # fmt: skip
    return writer.op("Cast", found, to=ir.DataType.FLOAT)
