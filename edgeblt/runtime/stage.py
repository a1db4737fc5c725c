"""One stage of one session: ONNX Runtime bindings whose buffers stay bound until they are replaced."""

import time
from collections.abc import Callable, Mapping
from operator import is_
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import onnxruntime

from edgeblt.bundle.contract import BATCH_INPUTS, CacheSpec, StageName
from edgeblt.errors import EdgebltError
from edgeblt.runtime.cuda import explained
from edgeblt.runtime.opened_graphs import MANY, OpenedGraph, closed
from edgeblt.runtime.run_errors import run_error
from edgeblt.runtime.stage_work import StageWork
from edgeblt.runtime.state.device_array import Array, DeviceArray

_Arrays = TypeVar("_Arrays")
_OF_FEW, _OF_MANY, _SHARING = (2, 0), (MANY, 0), (MANY, 1)
_OF_ONE_SEQUENCE = {
    spec.name: np.zeros([size if isinstance(size, int) else 0 for size in spec.shape], spec.dtype)
    for spec in BATCH_INPUTS
}


class BoundCache(Protocol):
    """Buffers of keys and values, and tables of angles, that are bound to a graph until they are replaced."""

    spec: CacheSpec
    buffers: list[Array]
    cosines: Array
    sines: Array
    replacements: int

    def read_bytes(self, count: int) -> int:
        """Bytes of keys and values in the windows of the last `count` positions."""
        ...


class KeptArrays(Generic[_Arrays]):
    """Arrays by size; those for MANY rows or more are made anew each time."""

    def __init__(self, make: Callable[[int], _Arrays]) -> None:
        self._make, self._kept = make, dict[int, _Arrays]()

    def __getitem__(self, size: int) -> _Arrays:
        arrays = self._kept.get(size)
        if arrays is None:
            arrays = self._make(size)
            if size < MANY:
                self._kept[size] = arrays
        return arrays


class StageRunner:
    """Runs a graph on arrays given by name; the cache is shared between past and present, in place.

    Rows are those of one sequence unless a run's inputs say otherwise.
    """

    def __init__(self, name: StageName, graph: OpenedGraph, cache: "BoundCache | None") -> None:
        self.name = name
        self.work = StageWork()
        self.shares_threads: bool | None = None  # where other stages run beside it; False: it takes all threads then
        self.last_seconds = 0.0  # time of the last run
        self._graph, self._cache = graph, cache
        self._bindings: dict[tuple[int, int], _Binding] = {}
        self._cache_values: _CacheValues | None = None
        graph.add_user(self)

    def run(
        self,
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
        positions: int,
        patches: int,
    ) -> None:
        """Run on these arrays, contiguous and of the contract's types, writing into `outputs`.

        Raises EdgebltError where onnxruntime fails, for lack of memory or because of the graph or its weights.

        Binding an array takes longer than computing a small node, and all of a graph's as long as reading a byte. Calls
        with one position and as many `patches` share a binding, as do all calls with a few positions, and all with MANY
        or more; only arrays that are other objects than in its last call are bound again.
        """
        started = time.perf_counter()
        try:
            self._binding(positions, patches).run(
                inputs, outputs, (positions, patches) if positions < MANY else _OF_MANY
            )
        except EdgebltError:
            raise
        except Exception as error:  # onnxruntime raises a dozen unrelated types
            sentence = explained(error) if self._graph.memory else None
            raise sentence or run_error(error, self.name) from None
        read = self._cache.read_bytes(positions) if self._cache else 0
        self.last_seconds = time.perf_counter() - started
        self.work.add(positions, patches, self.last_seconds, read)

    def _binding(self, positions: int, patches: int) -> "_Binding":
        if self._graph.is_closed:
            self.release()
            raise closed()
        values = self._cache_values
        if self._cache and (values is None or values.replacements != self._cache.replacements):
            self.release()
            values = self._cache_values = _CacheValues(self._cache)
        shared = (1, patches) if positions == 1 else _OF_FEW if positions < MANY else _OF_MANY
        if self.shares_threads is not None:
            shared = _SHARING if self.shares_threads else _OF_MANY
        binding = self._bindings.get(shared)
        if binding is None:
            binding = _Binding(self._graph.for_positions(shared[0], shared == _SHARING), self._graph.read_there)
            for name in self._graph.input_names & _OF_ONE_SEQUENCE.keys():
                binding.bind(name, _value(_OF_ONE_SEQUENCE[name]), is_input=True)
            if values:
                values.bind(binding)
            self._bindings[shared] = binding
        return binding

    def release(self) -> None:
        """Let go of all bindings, and so of the graph and of buffers that have been replaced."""
        self._bindings.clear()
        self._cache_values = None


_Value = Any  # an onnxruntime.OrtValue or a DeviceArray


class _CacheValues:
    """Buffers of a cache as ONNX Runtime values, made once for all bindings."""

    def __init__(self, cache: BoundCache) -> None:
        self.replacements = cache.replacements
        *buffers, cosines, sines = map(_value, [*cache.buffers, cache.cosines, cache.sines])
        names = cache.spec.names
        self._inputs = dict(zip(names("past"), buffers, strict=True)) | {"cosines": cosines, "sines": sines}
        self._outputs = dict(zip(names("present"), buffers, strict=True))

    def bind(self, binding: "_Binding") -> None:
        for name, value in self._inputs.items():
            binding.bind(name, value, is_input=True)
        for name, value in self._outputs.items():
            binding.bind(name, value, is_input=False)


class _Binding:
    """Arrays bound to a graph, which reads the inputs in `read_there` from device memory.

    The values made of arrays are kept by the kind of call, as making one takes longer than binding it.
    """

    def __init__(self, graph: onnxruntime.InferenceSession, read_there: frozenset[str]) -> None:
        self._graph, self._read_there = graph, read_there
        self._binding = graph.io_binding()
        self._bound: dict[str, _Value] = {}
        self._values: dict[tuple[int, int], dict[str, tuple[Array, _Value]]] = {}
        self._arrays: list[Array] = []  # arrays of the last call

    def bind(self, name: str, value: _Value, is_input: bool) -> None:
        binding, self._bound[name] = self._binding, value
        if isinstance(value, DeviceArray):
            (binding.bind_input if is_input else binding.bind_output)(name, *_place(value))
        else:
            (binding.bind_ortvalue_input if is_input else binding.bind_ortvalue_output)(name, value)

    def run(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array], kind: tuple[int, int]) -> None:
        arrays = [*inputs.values(), *outputs.values()]
        if self._read_there or len(arrays) != len(self._arrays) or not all(map(is_, arrays, self._arrays)):
            self._arrays = arrays
            values = self._values.setdefault(kind, {})
            self._bind_arrays(inputs, values, is_input=True)
            self._bind_arrays(outputs, values, is_input=False)
        self._graph.run_with_iobinding(self._binding)

    def _bind_arrays(
        self, arrays: Mapping[str, Array], values: dict[str, tuple[Array, _Value]], is_input: bool
    ) -> None:
        for name, array in arrays.items():
            known = values.get(name)
            if known is None or known[0] is not array:
                known = values[name] = array, _value(array)
            # What a device reads is copied there when it is bound, not in a run.
            changes = is_input and name in self._read_there and _may_change(array)
            if changes or self._bound.get(name) is not known[1]:
                self.bind(name, known[1], is_input)


def _may_change(array: Array) -> bool:
    """Whether a host array may have changed since it was bound: not if it is read-only."""
    return not isinstance(array, DeviceArray) and array.flags.writeable


def _value(array: Array) -> _Value:
    """A value that shares the array's memory, and keeps it alive."""
    return array if isinstance(array, DeviceArray) else onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _place(array: DeviceArray) -> tuple[str, int, type, tuple[int, ...], int]:
    """Device, its index, dtype, shape and address for ONNX Runtime."""
    assert array.is_contiguous
    return array.memory.name, 0, array.dtype.type, array.shape, array.address
