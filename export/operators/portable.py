"""Operators between the stages of a portable graph, as functions of standard ones in domain `edgeblt`.

A client keeps all state, so what the runtime does between stages for other targets is part of the graph here.

    CacheSlots     rows [R, ..], position int64 [1], past [1, heads, C, head_dim], frequencies [head_dim / 2]
                   gives total_length int32 [1]: C + R, cosines, sines [C + R, head_dim / 2], whose last R rows are for
                   R rows after `position` others, and mask [1, 1, R, C + R], to be added to attention scores: the
                   lowest float32 for slots that no row has filled, which are the first ones, else 0
    IdWindows      recent_ids [R], ids [T], gives windows [T, context + 1]: each id after those before it, and the
                   newest R ids
    PatchPlaces    patch_starts bool [T], open_vectors [N, width]
                   gives patch_index [T], latent_index [T], patches [P + 1], open_index [N] (`edgeblt.bundle.contract`)
                   and patch_count int64 [1]: P. The first open vector means nothing and is in the patch that stays open
    OpenVectors    open_vectors [N, width], byte_vectors [T, width], open_index, patch_index, patch_count
                   gives the vectors of the patch that stays open
"""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from edgeblt.bundle.contract import EDGEBLT
from edgeblt.export.operators.function_writer import INT, FunctionWriter, function

SLOTS, WINDOWS, PLACES, OPEN = "CacheSlots", "IdWindows", "PatchPlaces", "OpenVectors"

LOWEST = float(np.finfo(np.float32).min)

Inputs = dict[str, ir.Value]


def cache_slots_function(opset: int = 23) -> ir.Function:
    """`CacheSlots`; angles are float32 as in transformers' `BltRotaryEmbedding`."""

    def body(writer: FunctionWriter, inputs: Inputs) -> list[ir.Value]:
        rows = writer.op("Shape", inputs["rows"], start=0, end=1)
        slots = writer.op("Shape", inputs["past"], start=2, end=3)
        zero, one = writer.constant_int(0), writer.constant_int(1)
        position, count, total = (
            writer.op("Squeeze", value, writer.ints(0))
            for value in (inputs["position"], rows, writer.op("Add", slots, rows))
        )
        positions = writer.op("Range", position, writer.op("Add", position, count), one)
        positions = writer.op("Unsqueeze", writer.op("Cast", positions, to=ir.DataType.FLOAT), writer.ints(1))
        angles = writer.op("Mul", positions, inputs["frequencies"])
        pads = writer.op("Concat", slots, writer.ints(0, 0, 0), axis=0)
        tables = (writer.op("Pad", writer.op(kind, angles), pads) for kind in ("Cos", "Sin"))
        is_empty = writer.op("Less", writer.op("Range", zero, total, one), writer.op("Sub", slots, inputs["position"]))
        lowest, nothing = (writer.constant(np.array(number, np.float32)) for number in (LOWEST, 0))
        mask = writer.op("Where", is_empty, lowest, nothing)
        shape = writer.op("Concat", writer.ints(1, 1), rows, writer.ints(1), axis=0)
        length = writer.op("Unsqueeze", writer.op("Cast", total, to=ir.DataType.INT32), writer.ints(0))
        return [length, *tables, writer.op("Expand", mask, shape)]

    return _function(SLOTS, ("rows", "position", "past", "frequencies"), body, opset)


def id_windows_function(opset: int = 23) -> ir.Function:
    """`IdWindows`"""

    def body(writer: FunctionWriter, inputs: Inputs) -> list[ir.Value]:
        zero, one = writer.constant_int(0), writer.constant_int(1)
        ids = writer.op("Concat", inputs["recent_ids"], inputs["ids"], axis=0)
        recent, count = (
            writer.op("Squeeze", writer.op("Shape", inputs[name]), writer.ints(0)) for name in ("recent_ids", "ids")
        )
        context = writer.attribute("context")
        ends = writer.op("Add", writer.op("Range", zero, count, one), writer.op("Sub", recent, context))
        width = writer.op("Range", zero, writer.op("Add", context, one), one)
        places = writer.op("Add", writer.op("Unsqueeze", ends, writer.ints(1)), width)
        newest = writer.op("Slice", ids, writer.op("Shape", inputs["ids"]), writer.ints(1 << 62), writer.ints(0))
        return [writer.op("Gather", ids, places), newest]

    return _function(WINDOWS, ("recent_ids", "ids"), body, opset, ("context",))


def patch_places_function(opset: int = 23) -> ir.Function:
    """`PatchPlaces`"""

    def body(writer: FunctionWriter, inputs: Inputs) -> list[ir.Value]:
        starts = writer.op("Cast", inputs["patch_starts"], to=ir.DataType.INT64)
        latent_index = writer.op("CumSum", starts, writer.constant_int(0))
        patch_index = writer.op("Sub", latent_index, starts)
        count = writer.op("Gather", latent_index, writer.ints(-1))
        one = writer.constant_int(1)
        end = writer.op("Add", writer.op("Squeeze", count, writer.ints(0)), one)
        patches = writer.op("Range", writer.constant_int(0), end, one)
        others = writer.op("Sub", writer.op("Shape", inputs["open_vectors"], start=0, end=1), writer.ints(1))
        open_index = writer.op("Concat", count, writer.op("Expand", writer.ints(0), others), axis=0)
        return [patch_index, latent_index, patches, open_index, count]

    return _function(PLACES, ("patch_starts", "open_vectors"), body, opset)


def open_vectors_function(opset: int = 23) -> ir.Function:
    """`OpenVectors`"""
    names = ("open_vectors", "byte_vectors", "open_index", "patch_index", "patch_count")

    def body(writer: FunctionWriter, inputs: Inputs) -> list[ir.Value]:
        vectors, index = (
            writer.op("Concat", *(inputs[name] for name in pair), axis=0) for pair in (names[:2], names[2:4])
        )
        return [writer.op("Compress", vectors, writer.op("Equal", index, inputs["patch_count"]), axis=0)]

    return _function(OPEN, names, body, opset)


def _function(
    name: str,
    input_names: Sequence[str],
    body: Callable[[FunctionWriter, Inputs], list[ir.Value]],
    opset: int,
    attributes: Sequence[str] = (),
) -> ir.Function:
    inputs = {input_name: ir.Value(name=input_name) for input_name in input_names}
    writer = FunctionWriter()
    outputs = body(writer, inputs)
    return function((EDGEBLT, name), dict.fromkeys(attributes, INT), inputs, outputs, writer, {"": opset})


FUNCTIONS = {
    SLOTS: cache_slots_function,
    WINDOWS: id_windows_function,
    PLACES: patch_places_function,
    OPEN: open_vectors_function,
}
