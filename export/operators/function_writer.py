"""Bodies of model-local ONNX functions, node by node."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.tape import Tape

INT, FLOAT = "INT", "FLOAT"  # kinds of attributes


class FunctionWriter:
    """Appends nodes to a function body or to one branch in it. Value names are unique over all of them, because a
    branch may not hide a name of the graph around it."""

    def __init__(self, around: "FunctionWriter | None" = None) -> None:
        """`around` is the writer of the body or branch that a branch lies in."""
        self._names: Iterator[int] = around._names if around else itertools.count()
        self._constants: dict[object, ir.Value] = dict(around._constants) if around else {}
        self._tape = Tape()

    @property
    def nodes(self) -> Sequence[ir.Node]:
        return self._tape.nodes

    def op(self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        return self._tape.op(op_type, inputs, attributes, domain=domain, output=self._new_value())

    def ops(
        self, op_type: str, *inputs: ir.Value | None, outputs: int, domain: str = "", **attributes: Any
    ) -> Sequence[ir.Value]:
        values = [self._new_value() for _ in range(outputs)]
        return self._tape.op_multi_out(op_type, inputs, attributes, domain=domain, outputs=values)

    def constant(self, array: NDArray[Any]) -> ir.Value:
        """The constant, which is one node however often it is used."""
        key = array.dtype.str, array.shape, array.tobytes()
        return self._once(key, lambda: self.op("Constant", value=ir.tensor(array)))

    def ints(self, *values: int) -> ir.Value:
        """int64 [len(values)]"""
        return self.constant(np.array(values, np.int64))

    def constant_int(self, value: int) -> ir.Value:
        """int64 []"""
        return self.constant(np.array(value, np.int64))

    def attribute(self, name: str) -> ir.Value:
        """int64 []: the function's attribute `name`, an integer."""
        return self._once(name, lambda: self.op("Constant", value_int=reference(name, "value_int")))

    def branch(self, condition: ir.Value, then: "Branch", otherwise: "Branch") -> Sequence[ir.Value]:
        """`If`: the values that the branch taken returned, which must be computed in it."""
        graphs: dict[str, ir.Graph] = {}
        for name, write in (("then_branch", then), ("else_branch", otherwise)):
            writer = FunctionWriter(self)
            values = write(writer)
            graphs[name] = ir.Graph([], values, nodes=writer.nodes, name=f"{name}_{next(self._names)}")
        return self._tape.op_multi_out("If", [condition], graphs, outputs=[self._new_value() for _ in values])

    def _once(self, key: object, write: Callable[[], ir.Value]) -> ir.Value:
        if key not in self._constants:
            self._constants[key] = write()
        return self._constants[key]

    def _new_value(self) -> ir.Value:
        return ir.Value(name=f"value_{next(self._names)}")


Branch = Callable[[FunctionWriter], list[ir.Value]]


def reference(name: str, parameter: str | None = None, kind: str = INT) -> ir.Attr:
    """A node's attribute `parameter`, by default of the same name, that is the function's attribute `name`."""
    return ir.RefAttr(parameter or name, name, ir.AttributeType[kind])


def function(
    identity: tuple[str, str],
    attributes: Mapping[str, str],
    inputs: Mapping[str, ir.Value],
    outputs: Sequence[ir.Value],
    writer: FunctionWriter,
    opsets: dict[str, int],
) -> ir.Function:
    """The function `identity` (domain, name) of what was written; `attributes` maps names to kinds, all required."""
    domain, name = identity
    graph = ir.Graph(list(inputs.values()), outputs, nodes=writer.nodes, opset_imports=opsets, name=name)
    parameters = [ir.Attr(attribute, ir.AttributeType[kind], None) for attribute, kind in attributes.items()]
    return ir.Function(domain, name, graph=graph, attributes=parameters)
