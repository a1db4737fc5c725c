"""One stage of one session: ONNX Runtime bindings whose buffers stay bound while they do not change."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgeblt.cache import KeyValueCache
from edgeblt.contract import StageContract
from edgeblt.work import StageWork


@dataclass(frozen=True)
class StageGraph:
    """A stage's graph, opened once for runs on one position and once for those on many, or once for both.

    ONNX Runtime fixes the number of threads when it opens a graph, and the two want different numbers.
    """

    one: onnxruntime.InferenceSession
    many: onnxruntime.InferenceSession


MANY = 2  # the binding variant of runs on many positions


class Stage:
    """Runs a graph on arrays given by name; the cache is shared between past and present, in place."""

    def __init__(self, graph: StageGraph, contract: StageContract, rollback: int) -> None:
        self.name = contract.name
        self.cache = KeyValueCache(contract.cache, rollback) if contract.cache else None
        self.work = StageWork()
        self._graph = graph
        self._bindings: dict[int, _Binding] = {}

    def reserve(self, count: int) -> None:
        """Make room in the cache for `count` positions."""
        if self.cache and self.cache.reserve(count):
            self._bindings.clear()

    def run(
        self,
        inputs: dict[str, NDArray[Any]],
        outputs: dict[str, NDArray[Any]],
        variant: int,
        positions: int,
        patches: int,
    ) -> None:
        """Run on these arrays, contiguous and of the contract's types, writing into `outputs`.

        Binding an array takes longer than a small node computes. Calls of one `variant` share a binding, in which only
        arrays that are other objects than in its last call are bound again. The variant MANY is for many positions.
        `positions` and `patches` are how many are read: for `work`.
        """
        binding = self._bindings.get(variant)
        if binding is None:
            graph = self._graph.many if variant == MANY else self._graph.one
            binding = self._bindings[variant] = _Binding(graph, self.cache)
        started = time.perf_counter()
        binding.run(inputs, outputs)
        self.work.add(positions, patches, time.perf_counter() - started)

    def clear(self) -> None:
        """Back to an empty sequence."""
        self._bindings.clear()
        if self.cache:
            self.cache.clear()

    def copy_from(self, other: "Stage") -> None:
        if self.cache and other.cache:
            self.cache.copy_from(other.cache)
            self._bindings.clear()


class _Binding:
    def __init__(self, graph: onnxruntime.InferenceSession, cache: KeyValueCache | None) -> None:
        self._graph = graph
        self._binding = graph.io_binding()
        self._inputs: dict[str, NDArray[Any]] = {}
        self._outputs: dict[str, NDArray[Any]] = {}
        if cache:
            past = dict(zip(cache.spec.names("past"), cache.buffers, strict=True))
            present = dict(zip(cache.spec.names("present"), cache.buffers, strict=True))
            self._bind(past | {"cosines": cache.cosines, "sines": cache.sines}, present)

    def run(self, inputs: dict[str, NDArray[Any]], outputs: dict[str, NDArray[Any]]) -> None:
        self._bind(inputs, outputs)
        self._graph.run_with_iobinding(self._binding)

    def _bind(self, inputs: dict[str, NDArray[Any]], outputs: dict[str, NDArray[Any]]) -> None:
        for name, array in inputs.items():
            if self._inputs.get(name) is not array:
                self._binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, _address(array))
                self._inputs[name] = array
        for name, array in outputs.items():
            if self._outputs.get(name) is not array:
                self._binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, _address(array))
                self._outputs[name] = array


_PLACEHOLDER = np.zeros(1, np.int64)


def _address(array: NDArray[Any]) -> int:
    """Where the data lie; an empty array gets some valid address, as ONNX Runtime refuses null."""
    assert array.flags.c_contiguous
    return int((array if array.size else _PLACEHOLDER).__array_interface__["data"][0])
