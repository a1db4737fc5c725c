"""One stage of one session: ONNX Runtime bindings whose buffers stay bound until they are replaced."""

import time
from collections.abc import Mapping
from operator import is_
from typing import Any, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgeblt.bundle.contract import BATCH_INPUTS, CacheSpec, StageName
from edgeblt.errors import EdgebltError
from edgeblt.runtime.cuda import explained
from edgeblt.runtime.opened_graphs import MANY, OpenedGraph, closed
from edgeblt.runtime.run_errors import run_error
from edgeblt.runtime.stage_work import StageWork
from edgeblt.runtime.state.device_array import Array, DeviceArray

_OF_MANY, _SHARING = (MANY, 0), (MANY, 1)
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

        Binding an array takes longer than computing a small node. Calls with the same numbers of `positions` and
        `patches` share a binding, as do all calls with MANY positions or more; only arrays that are other objects than
        in its last call are bound again.
        """
        started = time.perf_counter()
        try:
            self._binding(positions, patches).run(inputs, outputs)
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
        key = (positions, patches) if positions < MANY else _OF_MANY
        if self.shares_threads is not None:
            key = _SHARING if self.shares_threads else _OF_MANY
        binding = self._bindings.get(key)
        if binding is None:
            binding = _Binding(self._graph.for_positions(key[0], key == _SHARING), self._graph.read_there)
            for name in self._graph.input_names & _OF_ONE_SEQUENCE.keys():
                binding.bind_array(name, _OF_ONE_SEQUENCE[name])
            if values:
                values.bind(binding)
            self._bindings[key] = binding
        return binding

    def release(self) -> None:
        """Let go of all bindings, and so of the graph and of buffers that have been replaced."""
        self._bindings.clear()
        self._cache_values = None


_Place = tuple[str, int, type, tuple[int, ...], int]  # device, index, dtype, shape, address for ONNX Runtime


class _CacheValues:
    """Buffers of a cache as ONNX Runtime values, made once for all bindings; they share the arrays' memory."""

    def __init__(self, cache: BoundCache) -> None:
        self.replacements = cache.replacements
        self._arrays = [*cache.buffers, cache.cosines, cache.sines]  # the values do not keep them alive
        *buffers, cosines, sines = map(_value, self._arrays)
        names = cache.spec.names
        self._inputs = dict(zip(names("past"), buffers, strict=True)) | {"cosines": cosines, "sines": sines}
        self._outputs = dict(zip(names("present"), buffers, strict=True))

    def bind(self, binding: "_Binding") -> None:
        for name, value in self._inputs.items():
            binding.bind_value(name, value, is_input=True)
        for name, value in self._outputs.items():
            binding.bind_value(name, value, is_input=False)


class _Binding:
    """Arrays bound to a graph, which reads the inputs in `read_there` from device memory."""

    def __init__(self, graph: onnxruntime.InferenceSession, read_there: frozenset[str]) -> None:
        self._graph, self._read_there = graph, read_there
        self._binding = graph.io_binding()
        self._inputs: dict[str, tuple[Array, _Place]] = {}
        self._outputs: dict[str, Array] = {}
        self._arrays: list[Array] = []  # arrays of the last call

    def bind_value(self, name: str, value: "onnxruntime.OrtValue | DeviceArray", is_input: bool) -> None:
        binding = self._binding
        if isinstance(value, DeviceArray):
            (binding.bind_input if is_input else binding.bind_output)(name, *_place(value))
        else:
            (binding.bind_ortvalue_input if is_input else binding.bind_ortvalue_output)(name, value)

    def bind_array(self, name: str, array: Array) -> None:
        """Bind an input that stays as it is, unless a run names another."""
        self._binding.bind_input(name, *_place(array))

    def run(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        self._bind(inputs, outputs)
        self._graph.run_with_iobinding(self._binding)

    def _bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        arrays = [*inputs.values(), *outputs.values()]
        if not self._read_there and len(arrays) == len(self._arrays) and all(map(is_, arrays, self._arrays)):
            return
        self._arrays = arrays
        for name, array in inputs.items():
            bound = self._inputs.get(name)
            if bound is None or bound[0] is not array:
                bound = self._inputs[name] = array, _place(array)
                self._binding.bind_input(name, *bound[1])
            elif name in self._read_there and _may_change(array):  # copied to the device when it is bound, not in a run
                self._binding.bind_input(name, *bound[1])
        for name, array in outputs.items():
            if self._outputs.get(name) is not array:
                self._binding.bind_output(name, *_place(array))
                self._outputs[name] = array


def _may_change(array: Array) -> bool:
    """Whether a host array may have changed since it was bound: not if it is read-only."""
    return not isinstance(array, DeviceArray) and array.flags.writeable


def _value(array: Array) -> "onnxruntime.OrtValue | DeviceArray":
    return array if isinstance(array, DeviceArray) else onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _place(array: Array) -> _Place:
    if isinstance(array, DeviceArray):
        assert array.is_contiguous
        return array.memory.name, 0, array.dtype.type, array.shape, array.address
    return "cpu", 0, array.dtype.type, array.shape, _address(array)


_PLACEHOLDER = np.zeros(1, np.int64)


def _address(array: NDArray[Any]) -> int:
    """Address of the data; an empty array gets some valid address, as ONNX Runtime refuses null."""
    assert array.flags.c_contiguous
    return int((array if array.size else _PLACEHOLDER).__array_interface__["data"][0])
