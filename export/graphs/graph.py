"""A stage's graph under construction: inputs and outputs from its contract, weights under their fixed names."""

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.tape import Tape

from edgeblt.bundle.contract import COMPUTED_IN, EDGEBLT, MICROSOFT, DType, StageContract, TensorSpec
from edgeblt.export.graphs.weight_file import Piece, Slot
from edgeblt.export.operators.interleaved_weights import DenseForms

OPSET = 23
IR_VERSION = 11
DTYPES = {
    "float32": ir.DataType.FLOAT,
    "int64": ir.DataType.INT64,
    "int32": ir.DataType.INT32,
    "bool": ir.DataType.BOOL,
    "float16": ir.DataType.FLOAT16,
    "int8": ir.DataType.INT8,
    "uint8": ir.DataType.UINT8,
    "int4": ir.DataType.INT4,
    "uint4": ir.DataType.UINT4,
}
PAGE = 4096  # tensors of this many bytes start on a page, so that they can be mapped on their own
LINE = 64

Fill = Callable[[], Iterator[Piece]]
DenseFunction = Callable[[int, DenseForms], ir.Function]


@dataclass(frozen=True)
class BuiltStage:
    """A stage's model, the places of its weights in a file of their own, and the functions that fill that file."""

    model: ir.Model
    slots: dict[str, Slot]
    fills: tuple[Fill, ...]


class GraphBuilder:
    """Collects the nodes of one stage; `finish` gives the model.

    Weights get their places in the stage's weights file; the functions that make them, a piece at a time, run later.
    """

    def __init__(self, contract: StageContract) -> None:
        self.contract = contract
        self.computed_in: DType = COMPUTED_IN[contract.target]
        self.inputs = {spec.name: graph_value(spec) for spec in contract.all_inputs}
        self._tape = Tape()
        self._numbers = itertools.count()
        self._constants: dict[tuple[str, bytes, tuple[int, ...]], ir.Value] = {}
        self._settings: list[ir.Value] = []
        self._slots: dict[str, Slot] = {}
        self._forms: dict[str, tuple[ir.DataType, tuple[int, ...]]] = {}
        self._weights: list[ir.Value] = []
        self._fills: list[Fill] = []
        self._functions: dict[str, ir.Function] = {}
        self._dense_functions: dict[str, DenseFunction] = {}
        self._dense_forms = DenseForms(only_bytes=True, only_symmetric=True)

    def op(self, kind: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        (value,) = self.ops(kind, *inputs, outputs=1, domain=domain, **attributes)
        return value

    def ops(
        self, kind: str, *inputs: ir.Value | None, outputs: int, domain: str = "", **attributes: Any
    ) -> list[ir.Value]:
        name = f"{kind}_{next(self._numbers)}"  # unique over branches too, as theirs may not hide the graph's
        values = [ir.Value(name=name if outputs == 1 else f"{name}_{index}") for index in range(outputs)]
        return list(self._tape.op_multi_out(kind, inputs, attributes, outputs=values, domain=domain, name=name))

    def part(self, contract: StageContract, inputs: Mapping[str, ir.Value]) -> "GraphBuilder":
        """A builder of a stage within this graph or the branch being built, which reads these values."""
        part = copy.copy(self)
        part.contract, part.inputs = contract, dict(inputs)
        return part

    @property
    def is_for_cpu(self) -> bool:
        return self.contract.target == "cpu"

    @property
    def is_portable(self) -> bool:
        return self.contract.target == "portable"

    def cast(self, value: ir.Value, found: str, wanted: str) -> ir.Value:
        """`value`, of type `found`, cast to `wanted` if they differ."""
        return value if found == wanted else self.op("Cast", value, to=DTYPES[wanted])

    def computed(self, value: ir.Value) -> ir.Value:
        """A float32 value in the type that the stage computes in."""
        return self.cast(value, "float32", self.computed_in)

    def float32(self, value: ir.Value) -> ir.Value:
        """The inverse of `computed`."""
        return self.cast(value, self.computed_in, "float32")

    def with_spare_row(self, value: ir.Value) -> ir.Value:
        """Rows [T + 1, width], the last one zeros: see `operators/matmuls.py`."""
        return self.op("Pad", value, self.constant([0, 0, 1, 0]))

    def without_spare_row(self, value: ir.Value) -> ir.Value:
        """The inverse of `with_spare_row`."""
        return self.op("Slice", value, *(self.constant([number]) for number in (0, -1, 0)))

    def number(self, value: float | NDArray[Any]) -> ir.Value:
        """A constant in the type that the stage computes in."""
        return self.constant(np.asarray(value, self.computed_in))

    def integer_product(self, rows: ir.Value, matrix: NDArray[np.int64]) -> ir.Value:
        """int64 `rows` [T, in] times a constant matrix [in, out], which wraps.

        ONNX Runtime's int64 MatMul wraps exactly on the CPU; CUDA has none, there a running sum takes its place.
        ReduceSum wraps on neither.
        """
        if self.contract.target != "cuda":
            return self.op("MatMul", rows, self.constant(matrix))
        columns = self.op("Unsqueeze", rows, self.constant([2]))
        sums = self.op("CumSum", self.op("Mul", columns, self.constant(matrix)), self.constant(np.array(1)))
        return self.op("Gather", sums, self.constant(np.array(len(matrix) - 1)), axis=1)

    def weight(self, name: str, shape: tuple[int, ...], dtype: str = "float32") -> ir.Value:
        """An initializer `name` of `shape` and `dtype` in the stage's file of weights; see `fill`.

        Codes of 4 bits are filled as bytes, uint8 [ceil(elements / 2)].
        """
        half_bytes = dtype.endswith("int4")
        stored = (-(-math.prod(shape) // 2),) if half_bytes else shape
        self._slots[name] = Slot(0, np.dtype("uint8" if half_bytes else dtype), stored)
        self._forms[name] = DTYPES[dtype], shape
        self._weights.append(self._tape.initializer(self._external(name)))
        return self._weights[-1]

    def fill(self, fill: Fill) -> None:
        """Registers the function that makes weights; its pieces together hold every row once."""
        self._fills.append(fill)

    def uses(self, operator: str, make: Callable[[int], ir.Function]) -> None:
        """Adds the portable body of an operator of domain `edgeblt`, made once, to the model."""
        if operator not in self._functions:
            self._functions[operator] = make(OPSET)

    def uses_dense(self, operator: str, make: DenseFunction) -> None:
        """Adds the portable body of an operator on dense weights, for the forms of all that the graph will hold."""
        self._dense_functions.setdefault(operator, make)

    def holds_dense(self, forms: DenseForms) -> None:
        """Registers dense weights of such forms."""
        self._dense_forms &= forms

    def constant(self, array: NDArray[Any] | list[int] | int | float) -> ir.Value:
        """A small constant, shared by content: int64 for Python integers, float32 for Python floats."""
        value = np.asarray(array)
        if not isinstance(array, np.ndarray):
            value = value.astype(np.float32 if value.dtype.kind == "f" else np.int64)
        key = (str(value.dtype), value.tobytes(), value.shape)
        if key not in self._constants:
            self._constants[key] = self._tape.initializer(ir.Tensor(value, name=f"constant_{len(self._constants)}"))
        return self._constants[key]

    def setting(self, name: str, default: NDArray[Any]) -> ir.Value:
        """The input `name` of the contract's settings, given a default that callers may override."""
        value = self.inputs[name]
        value.const_value = ir.Tensor(default, name=name)
        self._settings.append(value)
        return value

    def branch(
        self, condition: ir.Value, then: Callable[[], list[ir.Value]], otherwise: Callable[[], list[ir.Value]]
    ) -> list[ir.Value]:
        """An `If` whose branches are built by the two functions with this object's own methods."""
        graphs = []
        for name, build in (("then_branch", then), ("else_branch", otherwise)):
            outer, self._tape = self._tape, _Branch(self._tape, self.is_portable)
            outputs = [self.op("Identity", value) for value in build()]
            own = self._tape.initializers
            graphs.append(ir.Graph([], outputs, nodes=self._tape.nodes, initializers=own, name=name))
            self._tape = outer
        first, second = graphs
        return self.ops("If", condition, outputs=len(outputs), then_branch=first, else_branch=second)

    def finish(self, outputs: dict[str, ir.Value], metadata: dict[str, str] | None = None) -> BuiltStage:
        """The stage whose outputs are these values, in the contract's order and under its names."""
        assert outputs.keys() == {spec.name for spec in self.contract.all_outputs}, sorted(outputs)
        values = []
        for spec in self.contract.all_outputs:
            value = (
                self.op("Identity", outputs[spec.name]) if outputs[spec.name].is_graph_input() else outputs[spec.name]
            )
            value.name, value.type, value.shape = spec.name, ir.TensorType(DTYPES[spec.dtype]), ir.Shape(spec.shape)
            values.append(value)
        self._place_weights()
        graph = ir.Graph(
            list(self.inputs.values()),
            values,
            nodes=self._tape.nodes,
            initializers=[*self._tape.initializers, *self._settings],
            opset_imports={"": OPSET, MICROSOFT: 1, EDGEBLT: 1},
            name=self.contract.name,
        )
        dense = (make(OPSET, self._dense_forms) for make in self._dense_functions.values())
        functions = [*self._functions.values(), *dense]
        model = ir.Model(
            graph, ir_version=IR_VERSION, producer_name="edgeblt", functions=functions, metadata_props=metadata
        )
        return BuiltStage(model, self._slots, tuple(self._fills))

    def _place_weights(self) -> None:
        """Large tensors first, each at the start of a page, then the small ones."""
        end = 0
        for name, slot in sorted(self._slots.items(), key=lambda item: item[1].size < PAGE):
            alignment = PAGE if slot.size >= PAGE else LINE
            placed = self._slots[name] = Slot(-(-end // alignment) * alignment, slot.dtype, slot.shape)
            end = placed.offset + placed.size
        for value in self._weights:
            value.const_value = self._external(str(value.name))

    def _external(self, name: str) -> ir.ExternalTensor:
        slot, (dtype, shape) = self._slots[name], self._forms[name]
        return ir.ExternalTensor(
            weights_name(self.contract.name),
            slot.offset,
            slot.size,
            dtype,
            shape=ir.Shape(shape),
            name=name,
        )


class _Branch(Tape):
    """A tape for a branch: its nodes are its own, constants the graph's, and weights too unless it `keeps_weights`.

    ONNX Runtime joins a product to weights in codes only where both are in one graph.
    """

    def __init__(self, outer: Tape, keeps_weights: bool) -> None:
        super().__init__()
        self._outer, self._keeps_weights = outer, keeps_weights

    def initializer(self, tensor: ir.TensorProtocol, name: str | None = None) -> ir.Value:
        if self._keeps_weights and isinstance(tensor, ir.ExternalTensor):
            return super().initializer(tensor, name)
        return self._outer.initializer(tensor, name)


def weights_name(stage: str) -> str:
    """The name of a stage's file of weights."""
    return f"{stage}.weights"


def graph_value(spec: TensorSpec) -> ir.Value:
    """A graph input or output of this name, type and shape."""
    return ir.Value(name=spec.name, type=ir.TensorType(DTYPES[spec.dtype]), shape=ir.Shape(spec.shape))
