"""One stage of one session: ONNX Runtime bindings whose buffers stay bound until they are replaced."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgeblt.bundle.contract import StageContract
from edgeblt.errors import EdgebltError
from edgeblt.runtime.cache import KeyValueCache
from edgeblt.runtime.cuda import explained
from edgeblt.runtime.device_array import Array, DeviceArray, DeviceMemory
from edgeblt.runtime.run_errors import run_error
from edgeblt.runtime.stage_work import StageWork

MANY = 33  # from so many positions on, a run uses all cores and its buffers are not kept
_OF_MANY = (MANY, 0)


@dataclass(frozen=True)
class OpenedGraph:
    """A stage's graph, opened once for runs on few positions and once for those on many, or once for both.

    ONNX Runtime fixes the number of threads when it opens a graph, and the two need different numbers. `memory` is that
    of the device it runs on, None being the host's; `read_there` names the inputs that it reads from it.
    """

    few: onnxruntime.InferenceSession
    many: onnxruntime.InferenceSession
    memory: DeviceMemory | None = None
    read_there: frozenset[str] = frozenset()

    @classmethod
    def on_device(cls, graph: onnxruntime.InferenceSession, memory: DeviceMemory) -> "OpenedGraph":
        places = zip(graph.get_inputs(), graph.get_input_memory_infos(), strict=True)
        return cls(graph, graph, memory, frozenset(value.name for value, place in places if place.name != "Cpu"))


class StageRunner:
    """Runs a graph on arrays given by name; the cache is shared between past and present, in place."""

    def __init__(self, graph: OpenedGraph, contract: StageContract, rollback: int) -> None:
        self.name = contract.name
        self.memory = graph.memory
        self.cache = KeyValueCache(contract.cache, rollback, graph.memory) if contract.cache else None
        self.work = StageWork()
        self._graph = graph
        self._bindings: dict[tuple[int, int], _Binding] = {}
        self._cache_values: _CacheValues | None = None

    def advance(self, count: int) -> int:
        """Extend the cache by the `count` positions of the next run; returns its filled slots, 0 without a cache."""
        if self.cache is None:
            return 0
        if self.cache.reserve(count):
            self._forget_bindings()
        return self.cache.advance(count)

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
            sentence = explained(error) if self.memory else None
            raise sentence or run_error(error, self.name) from None
        self.work.add(positions, patches, time.perf_counter() - started)

    def _binding(self, positions: int, patches: int) -> "_Binding":
        key = (positions, patches) if positions < MANY else _OF_MANY
        binding = self._bindings.get(key)
        if binding is None:
            graph = self._graph.few if positions < MANY else self._graph.many
            binding = _Binding(graph, self._graph.read_there)
            if self.cache:
                if self._cache_values is None:
                    self._cache_values = _CacheValues(self.cache)
                self._cache_values.bind(binding)
            self._bindings[key] = binding
        return binding

    def clear(self) -> None:
        """Return to an empty sequence."""
        self._forget_bindings()
        if self.cache:
            self.cache.clear()

    def copy_from(self, other: "StageRunner") -> None:
        if self.cache and other.cache:
            self.cache.copy_from(other.cache)
            self._forget_bindings()

    def _forget_bindings(self) -> None:
        """Drop the bindings of cache buffers that have been replaced."""
        self._bindings.clear()
        self._cache_values = None


_Place = tuple[str, int, type, tuple[int, ...], int]  # device, index, dtype, shape, address for ONNX Runtime


class _CacheValues:
    """Buffers of a cache as ONNX Runtime values, made once for all bindings; they share the arrays' memory."""

    def __init__(self, cache: KeyValueCache) -> None:
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

    def bind_value(self, name: str, value: "onnxruntime.OrtValue | DeviceArray", is_input: bool) -> None:
        binding = self._binding
        if isinstance(value, DeviceArray):
            (binding.bind_input if is_input else binding.bind_output)(name, *_place(value))
        else:
            (binding.bind_ortvalue_input if is_input else binding.bind_ortvalue_output)(name, value)

    def run(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        self._bind(inputs, outputs)
        self._graph.run_with_iobinding(self._binding)

    def _bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
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
