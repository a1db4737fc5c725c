"""`edgeblt::EntropyPatch`: next-byte entropies and the patch starts they decide, as a model-local ONNX function.

The body uses standard ONNX operators only, so a model that carries the function runs in any ONNX Runtime with no
library registered. A registered library with a kernel `EntropyPatch` in domain `edgeblt` wins over the body: ONNX
Runtime inlines a function only where it knows no kernel of that name. One model file serves both.

Contract, version 1, of this body and of any native kernel. T >= 1 ids with V logits each. t is the absolute index of
an id (BOS is t = 0); H[t] is the entropy of the distribution for id t + 1.

    inputs     logits            float32 [T, V]  finite
               ids               int64 [T]
               position          int64 [1]       t of ids[0]
               state             float32 [3]     the row of `states` for the id before ids[0]; ignored at position 0
               threshold         float32 [1]     nats
               threshold_add     float32 [1]     nats; THRESHOLD_AND_RISE only
               max_patch_length  int64 [1]       0: no maximum; at most 2**24
               patch_size        int64 [1]       at least 1; STATIC only
               sequences         int64 [Q, 2]    for the target cpu: first row and position of each of several
               sequence_states   float32 [Q, 3]  sequences, and the state before it; empty where all rows are of one, at
                                                 `position`. Only kernels take several
    attribute  rule              int             a value of `bundle.config.Rule`; no default, write it on every node
    outputs    entropies         float32 [T]     nats
               patch_starts      bool [T]        patch_starts[i]: position + i + 1 starts a patch
               states            float32 [T, 3]  row i is the state after ids[i]

The state after id t is (H[t], 1 if id t is space-like else 0, s). s is t + 1 less the last position up to t + 1 that
the rule itself made a start (position 0 is one), modulo max_patch_length; 0 where there is no maximum.

A kernel must decide by these rules on the very entropies it outputs, which may differ from the body's by rounding,
and give a row the same bits however the rows are split into calls: so entropies, starts and states of a sequence do
not depend on the chunks it came in, and going back to a byte is passing that byte's row again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeblt.bundle.config import PatchingRule, Rule
from edgeblt.bundle.contract import EDGEBLT, PATCHING_INPUTS, PATCHING_OUTPUTS, SEQUENCE_INPUTS, Target
from edgeblt.errors import EdgebltError
from edgeblt.export.operators.function_writer import FunctionWriter
from edgeblt.ids import OFFSET, VOCAB_SIZE

OP_TYPE = "EntropyPatch"
LONGEST_MAXIMUM = 1 << 24  # float32 holds every count below it


def entropy_patch_function(opset: int = 23, target: Target = "cpu") -> ir.Function:
    """The operator's portable body; `opset`, 21 to 23, must be the one of the model that carries it."""
    more = SEQUENCE_INPUTS if target == "cpu" else ()
    inputs = {spec.name: ir.Value(name=spec.name) for spec in (*PATCHING_INPUTS, *more)}
    writer = FunctionWriter()
    outputs = _write_body(writer, inputs, target)
    for name, value in outputs.items():
        value.name = name
    graph = ir.Graph(
        list(inputs.values()),
        [outputs[spec.name] for spec in PATCHING_OUTPUTS],
        nodes=writer.nodes,
        opset_imports={"": opset},
        name=OP_TYPE,
    )
    rule = ir.Attr("rule", ir.AttributeType.INT, None)
    return ir.Function(EDGEBLT, OP_TYPE, graph=graph, attributes=[rule])


def setting_defaults(patching: PatchingRule) -> dict[str, NDArray[Any]]:
    """The operator's inputs that hold the rule's parameters, by name (`PATCHING_SETTINGS`), one element each.

    Raises EdgebltError for a maximum length above 2**24, up to which the float32 state counts bytes exactly.
    """
    if (patching.max_patch_length or 0) > LONGEST_MAXIMUM:
        raise EdgebltError(
            f"max_patch_length is {patching.max_patch_length}; use at most {LONGEST_MAXIMUM}, or none for no maximum"
        )
    return {
        "threshold": np.array([patching.threshold], np.float32),
        "threshold_add": np.array([patching.threshold_add], np.float32),
        "max_patch_length": np.array([patching.max_patch_length or 0], np.int64),
        "patch_size": np.array([patching.patch_size], np.int64),
    }


_Decision = Callable[[FunctionWriter], ir.Value]  # bool [T]


def _write_body(body: FunctionWriter, inputs: dict[str, ir.Value], target: Target) -> dict[str, ir.Value]:
    column = _entropy_column(body, inputs["logits"], target)
    entropies = body.op("Squeeze", column, body.ints(1))
    # [T]: position + 1 .. position + T, the positions decided upon
    ones = body.op("ConstantOfShape", body.op("Shape", inputs["ids"]), value=ir.tensor(np.array([1], np.int64)))
    positions = body.op("Add", body.op("CumSum", ones, _axis_0(body)), inputs["position"])
    # [T, 2]: whether space-like, and the 0 that a state has where there is no maximum length
    last_id = body.ints(VOCAB_SIZE - 1)
    spaces = body.op("Gather", body.constant(_space_table()), body.op("Min", inputs["ids"], last_id))

    rule = body.attribute("rule")
    starts = _select(body, rule, _Rules(inputs, entropies, positions, spaces).decisions())

    def without_maximum(branch: FunctionWriter) -> list[ir.Value]:
        return [branch.op("Identity", starts), branch.op("Concat", column, spaces, axis=1)]

    def with_maximum(branch: FunctionWriter) -> list[ir.Value]:
        since = _bytes_since_start(branch, inputs, positions, starts)
        since_column = branch.op("Unsqueeze", branch.op("Cast", since, to=ir.DataType.FLOAT), branch.ints(1))
        space_column = branch.op("Gather", spaces, branch.ints(0), axis=1)
        states = branch.op("Concat", column, space_column, since_column, axis=1)
        return [branch.op("Equal", since, branch.ints(0)), states]

    limited = body.op("Greater", inputs["max_patch_length"], body.ints(0))
    patch_starts, states = body.branch(limited, with_maximum, without_maximum)
    return {"entropies": entropies, "patch_starts": patch_starts, "states": states}


def _entropy_column(body: FunctionWriter, logits: ir.Value, target: Target) -> ir.Value:
    """[T, 1]: the sum of |p log p|, p log p never being positive.

    Not -ReduceSum: ONNX Runtime's sums a row in an order that depends on the row's memory alignment, so that for V
    not a multiple of 4 a row's last bits would depend on its place in the chunk. ReduceL1 adds left to right, but on
    CUDA takes cuDNN, a library larger than all else.
    """
    log_probabilities = body.op("LogSoftmax", logits, axis=-1)
    products = body.op("Mul", body.op("Exp", log_probabilities), log_probabilities)
    if target != "cuda":
        return body.op("ReduceL1", products, body.ints(1), keepdims=1)
    width = body.op("Concat", body.op("Shape", logits, start=1), body.ints(1), axis=0)
    minus_ones = body.op("ConstantOfShape", width, value=ir.tensor(np.array([-1], np.float32)))
    return body.op("MatMul", products, minus_ones)


@dataclass(frozen=True)
class _Rules:
    """Writers of the nodes that decide by each rule which of `positions` start a patch: bool [T].

    Forced starts are position 1, and 2 where a rise needs two entropies.
    """

    inputs: dict[str, ir.Value]
    entropies: ir.Value
    positions: ir.Value
    spaces: ir.Value

    def decisions(self) -> list[tuple[Rule, _Decision]]:
        return [
            (Rule.THRESHOLD, self._threshold),
            (Rule.MONOTONIC, self._monotonic),
            (Rule.THRESHOLD_AND_RISE, self._threshold_and_rise),
            (Rule.SPACE, self._space),
            (Rule.STATIC, self._static),
            (Rule.BYTE, self._byte),
        ]

    def _threshold(self, branch: FunctionWriter) -> ir.Value:
        return self._or_up_to(branch, 1, branch.op("Greater", self.entropies, self.inputs["threshold"]))

    def _monotonic(self, branch: FunctionWriter) -> ir.Value:
        return self._or_up_to(branch, 2, self._rises(branch, "threshold"))

    def _threshold_and_rise(self, branch: FunctionWriter) -> ir.Value:
        above = branch.op("Greater", self.entropies, self.inputs["threshold"])
        both = branch.op("And", self._rises(branch, "threshold_add"), above)
        return self._or_up_to(branch, 2, branch.op("And", both, branch.op("Greater", self.positions, branch.ints(3))))

    def _space(self, branch: FunctionWriter) -> ir.Value:
        space_like = branch.op("Gather", self.spaces, branch.constant(np.array(0)), axis=1)
        first = branch.op("Greater", space_like, self._previous(branch, space_like, component=1))
        special = branch.op("Less", self.inputs["ids"], branch.ints(OFFSET))
        return self._or_up_to(branch, 1, branch.op("Or", first, special))

    def _static(self, branch: FunctionWriter) -> ir.Value:
        return branch.op("Equal", branch.op("Mod", self.positions, self.inputs["patch_size"]), branch.ints(0))

    def _byte(self, branch: FunctionWriter) -> ir.Value:
        return branch.op("Greater", self.positions, branch.ints(0))

    def _or_up_to(self, branch: FunctionWriter, forced: int, condition: ir.Value) -> ir.Value:
        return branch.op("Or", condition, branch.op("LessOrEqual", self.positions, branch.ints(forced)))

    def _rises(self, branch: FunctionWriter, threshold: str) -> ir.Value:
        rise = branch.op("Sub", self.entropies, self._previous(branch, self.entropies, component=0))
        return branch.op("Greater", rise, self.inputs[threshold])

    def _previous(self, branch: FunctionWriter, values: ir.Value, component: int) -> ir.Value:
        """[T]: `values` one id earlier, the first from the carried state."""
        carried = branch.op("Slice", self.inputs["state"], branch.ints(component), branch.ints(component + 1))
        return branch.op("Concat", carried, branch.op("Slice", values, branch.ints(0), branch.ints(-1)), axis=0)


def _select(body: FunctionWriter, rule: ir.Value, decisions: list[tuple[Rule, _Decision]]) -> ir.Value:
    """Nested `If`s on a constant, which ONNX Runtime removes when it loads the model."""
    (number, decision), *rest = decisions
    if not rest:
        return decision(body)
    chosen = body.op("Equal", rule, body.constant(np.array(int(number))))
    (starts,) = body.branch(chosen, lambda then: [decision(then)], lambda other: [_select(other, rule, rest)])
    return starts


def _bytes_since_start(
    branch: FunctionWriter, inputs: dict[str, ir.Value], positions: ir.Value, starts: ir.Value
) -> ir.Value:
    """int64 [T]: `positions` less the last of them that `starts` marks, or the carried one, modulo the maximum."""
    carried = branch.op(
        "Cast", branch.op("Slice", inputs["state"], branch.ints(2), branch.ints(3)), to=ir.DataType.INT64
    )
    at_beginning = branch.op("Equal", inputs["position"], branch.ints(0))
    last = branch.op("Sub", inputs["position"], carried)
    last = branch.op("Where", at_beginning, branch.ints(0), last)
    candidates = branch.op("Concat", last, branch.op("Compress", positions, starts, axis=0), axis=0)
    # There is no running maximum in ONNX: the count of starts so far is the index of the latest one.
    count = branch.op("CumSum", branch.op("Cast", starts, to=ir.DataType.INT64), _axis_0(branch))
    since = branch.op("Sub", positions, branch.op("Gather", candidates, count))
    return branch.op("Mod", since, inputs["max_patch_length"])


def _axis_0(writer: FunctionWriter) -> ir.Value:
    return writer.constant(np.array(0))


def _space_table() -> NDArray[np.float32]:
    """[VOCAB_SIZE, 2]: 1 for every id that is no ASCII letter or digit and no UTF-8 continuation byte; then 0."""
    table = np.zeros((VOCAB_SIZE, 2), np.float32)
    table[:OFFSET, 0] = 1
    for byte in range(256):
        letter_or_digit = byte < 0x80 and chr(byte).isalnum()
        table[OFFSET + byte, 0] = not letter_or_digit and not 0x80 <= byte < 0xC0
    return table
