"""Runs of the stage on states whose buffers stay bound."""

import time

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgeblt.bundle.contract import StageContract
from edgeblt.errors import EdgebltError
from edgeblt.runtime.opened_graphs import MANY, OpenedGraph, closed
from edgeblt.runtime.recurrent.state import States
from edgeblt.runtime.run_errors import run_error
from edgeblt.runtime.stage_work import StageWork


class StateRunner:
    """Runs the graph from one set of states to another. Each of both has a binding that is made once."""

    def __init__(self, contract: StageContract, graph: OpenedGraph) -> None:
        self.work = StageWork()
        self._stage, self._graph = contract.name, graph
        self._contract = contract
        self._bindings: dict[tuple[bool, int, int], _StateBinding] = {}
        graph.add_user(self)

    def run(self, ids: NDArray[np.int64], logits: NDArray[np.float32], source: States, target: States) -> None:
        """Read bytes [T] from `source`, writing logits [T, 256] and `target`.

        Raises EdgebltError where onnxruntime fails, and once the graph is closed.
        """
        started = time.perf_counter()
        if self._graph.is_closed:
            self.release()
            raise closed()
        key = (len(ids) >= MANY, id(source), id(target))
        if key not in self._bindings:
            self._bindings[key] = _StateBinding(self._graph.for_positions(len(ids)), self._contract, source, target)
        try:
            self._bindings[key].run(ids, logits)
        except EdgebltError:
            raise
        except Exception as error:  # onnxruntime raises a dozen unrelated types
            raise run_error(error, self._stage) from None
        self.work.add(len(ids), 0, time.perf_counter() - started, source.nbytes)

    def release(self) -> None:
        """Let go of all bindings, and so of the graph."""
        self._bindings.clear()


class _StateBinding:
    """States bound to a graph, and the arrays of its last run."""

    def __init__(
        self, graph: onnxruntime.InferenceSession, contract: StageContract, source: States, target: States
    ) -> None:
        self._graph, self._binding = graph, graph.io_binding()
        self._last: tuple[object, object] = None, None
        empty = [np.zeros([size if isinstance(size, int) else 0 for size in spec.shape], spec.dtype)
                 for spec in contract.inputs[1 + len(source.arrays) :]]  # fmt: skip
        self._kept = source, target, empty  # bound by their addresses
        for bind, specs, arrays in (
            (self._binding.bind_ortvalue_input, contract.inputs[1:], [*source.arrays, *empty]),
            (self._binding.bind_ortvalue_output, contract.outputs[1:], target.arrays),
        ):
            for spec, array in zip(specs, arrays, strict=True):
                bind(spec.name, onnxruntime.OrtValue.ortvalue_from_numpy(array))

    def run(self, ids: NDArray[np.int64], logits: NDArray[np.float32]) -> None:
        if self._last[0] is not ids or self._last[1] is not logits:
            self._binding.bind_ortvalue_input("bytes", onnxruntime.OrtValue.ortvalue_from_numpy(ids))
            self._binding.bind_ortvalue_output("logits", onnxruntime.OrtValue.ortvalue_from_numpy(logits))
            self._last = ids, logits
        self._graph.run_with_iobinding(self._binding)
