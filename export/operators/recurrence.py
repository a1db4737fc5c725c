"""`edgeblt::CausalConvolution` and `edgeblt::SelectiveScan`, the recurrent parts of a Mamba layer, and their portable
bodies. D channels, N states of each, S slots of states, Q parts of the rows.

    CausalConvolution   a channel's last four inputs, weighted, and SiLU
      split               float32 [T, 2 D]   x of each byte, then its gate
      past                float32 [S, 3, D]  x of the three bytes before them
      kernel              float32 [4, D]     the newest byte's last
      bias                float32 [D]
      sequences           int64 [Q, 3]       of each part the row after its last, the slot that it begins in, and the
                                             slot that it leaves its state in
      gives x             float32 [T, D], and `present` [S, 3, D]

    SelectiveScan       dt = softplus(step + step_bias);  s = exp(dt decay) s + dt x B;
                        y = (C s + skip x) silu(gate)
      x                   float32 [T, D]
      split               float32 [T, 2 D]   the gate in the second half
      step                float32 [T, D]
      selected            float32 [T, R + 2 N]  after R others, B and C
      step_bias, skip     float32 [D]
      decay               float32 [N, D]     not positive
      past                float32 [S, N, D]  s before them
      sequences           as above
      gives y             float32 [T, D], and `present` [S, N, D]

Where `sequences` is absent or has no rows, all rows are of one sequence, and there is one slot; states may then lack
their first axis. Only so do the portable bodies compute. A part may begin in what an earlier one left; slots that none
leaves a state in stay as they are, for which past and present may share memory.

Each byte's numbers are computed by the same operations on the same shapes whatever T is, so how a text is cut changes
no bit; Softplus is within the step, as ONNX Runtime rounds its last elements in another way.
"""

import numpy as np
import onnx_ir as ir

from edgeblt.bundle.contract import EDGEBLT
from edgeblt.export.operators.function_writer import INT, FunctionWriter, function

CONVOLUTION, SCAN = "CausalConvolution", "SelectiveScan"
_TAPS = 4
_END = np.iinfo(np.int64).max


def causal_convolution_function(opset: int = 23) -> ir.Function:
    """`CausalConvolution` in standard operators."""
    inputs = {name: ir.Value(name=name) for name in ("split", "past", "kernel", "bias", "sequences")}
    writer = FunctionWriter()
    channels = writer.attribute("channels")
    x = _columns(writer, inputs["split"], writer.constant_int(0), channels)
    rows = writer.op("Concat", _of_width(writer, inputs["past"], channels), x, axis=0)
    total = inputs["bias"]
    for tap in range(_TAPS):
        end = tap - _TAPS + 1 or _END
        weighted = writer.op(
            "Mul",
            writer.op("Slice", rows, writer.ints(tap), writer.ints(end), writer.ints(0)),
            writer.op("Gather", inputs["kernel"], writer.constant_int(tap)),
        )
        total = writer.op("Add", total, weighted)
    present = writer.op("Slice", rows, writer.ints(1 - _TAPS), writer.ints(_END), writer.ints(0))
    outputs = [_silu(writer, total), _shaped_as(writer, present, inputs["past"])]
    return function((EDGEBLT, CONVOLUTION), {"channels": INT}, inputs, outputs, writer, {"": opset})


def selective_scan_function(opset: int = 23) -> ir.Function:
    """`SelectiveScan` in standard operators."""
    names = ("x", "split", "step", "selected", "step_bias", "decay", "skip", "past", "sequences")
    inputs = {name: ir.Value(name=name) for name in names}
    writer = FunctionWriter()
    channels, states, rank = (writer.attribute(name) for name in ("channels", "states", "rank"))
    middle = writer.op("Add", rank, states)
    given = _columns(writer, inputs["selected"], rank, middle)
    read = _columns(writer, inputs["selected"], middle, writer.op("Add", middle, states))
    rows = ((inputs["step"], channels), (inputs["x"], channels), (given, states), (read, states))
    past = _of_width(writer, inputs["past"], channels)
    present, scanned = writer.ops(
        "Scan", past, *(_of_width(writer, value, width) for value, width in rows), outputs=2,
        body=_step(writer, inputs["step_bias"], inputs["decay"]), num_scan_inputs=4,
    )  # fmt: skip
    gate = _columns(writer, inputs["split"], channels, writer.op("Add", channels, channels))
    total = writer.op("Add", scanned, writer.op("Mul", inputs["skip"], inputs["x"]))
    y = writer.op("Mul", total, _silu(writer, gate))
    attributes = dict.fromkeys(("channels", "states", "rank"), INT)
    outputs = [y, _shaped_as(writer, present, inputs["past"])]
    return function((EDGEBLT, SCAN), attributes, inputs, outputs, writer, {"": opset})


def _step(around: FunctionWriter, step_bias: ir.Value, decay: ir.Value) -> ir.Graph:
    """One byte's step from states [N, D]."""
    writer = FunctionWriter(around)
    names = ("state", "before_bias", "x", "given", "read")
    state, before_bias, x, given, read = inputs = [
        ir.Value(name=f"step_{name}", type=ir.TensorType(ir.DataType.FLOAT)) for name in names
    ]
    step = writer.op("Softplus", writer.op("Add", before_bias, step_bias))
    kept = writer.op("Mul", writer.op("Exp", writer.op("Mul", step, decay)), state)
    added = writer.op("Mul", writer.op("Unsqueeze", given, writer.ints(1)), writer.op("Mul", step, x))
    new = writer.op("Add", kept, added)
    weighted = writer.op("Mul", writer.op("Unsqueeze", read, writer.ints(1)), new)
    total = writer.op("ReduceSum", weighted, writer.ints(0), keepdims=0)
    return ir.Graph(inputs, [new, total], nodes=writer.nodes, name="step")


def _columns(writer: FunctionWriter, values: ir.Value, start: ir.Value, end: ir.Value) -> ir.Value:
    """Columns from `start` to `end`, each int64 []."""
    first, last = (writer.op("Unsqueeze", value, writer.ints(0)) for value in (start, end))
    return writer.op("Slice", values, first, last, writer.ints(1))


def _of_width(writer: FunctionWriter, values: ir.Value, width: ir.Value) -> ir.Value:
    """`values` [.., width] as [T, width], of which ONNX Runtime then knows the width, as it must in a Scan."""
    shape = writer.op("Concat", writer.ints(-1), writer.op("Unsqueeze", width, writer.ints(0)), axis=0)
    return writer.op("Reshape", values, shape)


def _shaped_as(writer: FunctionWriter, values: ir.Value, other: ir.Value) -> ir.Value:
    return writer.op("Reshape", values, writer.op("Shape", other))


def _silu(writer: FunctionWriter, value: ir.Value) -> ir.Value:
    return writer.op("Mul", value, writer.op("Sigmoid", value))
