"""Arrays in device memory, with the part of numpy's interface that the state of a session needs."""

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray


class DeviceMemory(Protocol):
    """Memory of a device, by address. Its methods raise EdgebltError where the device fails."""

    name: str  # name of the device in ONNX Runtime

    def allocate(self, size: int) -> int:
        """Address of `size` new bytes; a valid one for 0 bytes too."""
        ...

    def free(self, address: int) -> None: ...

    def copy(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int) -> None:
        """Copy `height` rows of `width` bytes between device and host, in any direction.

        The pitches are the bytes from one row to the next. Source and target do not overlap; the copy is complete on
        return.
        """
        ...

    def clear(self, address: int, size: int) -> None:
        """Set bytes to zero, complete on return."""
        ...


class DeviceArray:
    """Row-major array on a device, or a slice of one along one axis; slices share memory, freed with the last one."""

    def __init__(self, block: "_Block", address: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: Any):
        self.address, self.shape, self.strides = address, shape, strides
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self._block = block

    @classmethod
    def empty(cls, shape: tuple[int, ...], dtype: DTypeLike, memory: DeviceMemory) -> "DeviceArray":
        size = np.dtype(dtype).itemsize
        strides = tuple(size * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        block = _Block(memory, size * math.prod(shape))
        return cls(block, block.address, shape, strides, dtype)

    @property
    def memory(self) -> DeviceMemory:
        return self._block.memory

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def is_contiguous(self) -> bool:
        return _rows(self.shape, self.dtype.itemsize, self.strides)[1] == 1

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: "slice | tuple[slice, ...]") -> "DeviceArray":
        shape, address = list(self.shape), self.address
        for axis, part in enumerate(key if isinstance(key, tuple) else (key,)):
            start, stop, step = part.indices(self.shape[axis])
            assert step == 1
            shape[axis], address = max(stop - start, 0), address + start * self.strides[axis]
        return DeviceArray(self._block, address, tuple(shape), self.strides, self.dtype)

    def __setitem__(self, key: "slice | tuple[slice, ...]", value: "DeviceArray | NDArray[Any] | int") -> None:
        """Copy from an array of the same shape, on device or host, or set to 0."""
        target = self[key]
        if isinstance(value, int):
            assert value == 0
            width, height, _ = _rows(target.shape, target.dtype.itemsize, target.strides)
            assert height == 1
            if width:
                self.memory.clear(target.address, width)
            return
        if isinstance(value, DeviceArray) and target._overlaps(value):
            value = value.copy()
        target._copy_from(value)

    def copy(self) -> "DeviceArray":
        other = DeviceArray.empty(self.shape, self.dtype, self.memory)
        other._copy_from(self)
        return other

    def numpy(self) -> NDArray[Any]:
        """A copy on the host."""
        host = np.empty(self.shape, self.dtype)
        width, height, (pitch,) = _rows(self.shape, self.dtype.itemsize, self.strides)
        if width:
            self.memory.copy(host.__array_interface__["data"][0], width, self.address, pitch, width, height)
        return host

    def _copy_from(self, source: "DeviceArray | NDArray[Any]") -> None:
        assert source.shape == self.shape
        if isinstance(source, DeviceArray):
            assert source.dtype == self.dtype
            address = source.address
        else:
            source = np.ascontiguousarray(source, self.dtype)
            address = source.__array_interface__["data"][0]
        width, height, (own, its) = _rows(self.shape, self.dtype.itemsize, self.strides, source.strides)
        if width:
            self.memory.copy(self.address, own, address, its, width, height)

    def _overlaps(self, other: "DeviceArray") -> bool:
        if self._block is not other._block:
            return False
        if self.strides == other.strides:  # parts of one array along one axis: rows of the same pitch
            width, _, _ = _rows(self.shape, self.dtype.itemsize, self.strides)
            return abs(self.address - other.address) < width
        return self.address < other._end and other.address < self._end

    @property
    def _end(self) -> int:
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        return self.address + last + self.dtype.itemsize


Array = NDArray[Any] | DeviceArray


def empty(shape: tuple[int, ...], dtype: DTypeLike, memory: DeviceMemory | None) -> Any:  # an Array
    """Uninitialized array in `memory`, None being the host's."""
    return np.empty(shape, dtype) if memory is None else DeviceArray.empty(shape, dtype, memory)


def zeros(shape: tuple[int, ...], dtype: DTypeLike, memory: DeviceMemory | None) -> Any:  # an Array
    if memory is None:
        return np.zeros(shape, dtype)
    array = DeviceArray.empty(shape, dtype, memory)
    array[:] = 0
    return array


class _Block:
    """Device memory that is freed with the last array in it."""

    def __init__(self, memory: DeviceMemory, size: int) -> None:
        self.memory = memory
        self.address = memory.allocate(size)

    def __del__(self) -> None:
        if hasattr(self, "address"):  # not where allocating failed
            self.memory.free(self.address)


def _rows(shape: tuple[int, ...], itemsize: int, *strides: tuple[int, ...]) -> tuple[int, int, list[int]]:
    """Width in bytes of the longest row that is contiguous in all arrays of this shape, number of rows, and pitch in
    bytes of each array."""
    if 0 in shape:
        return 0, 1, [0] * len(strides)
    width, axis = itemsize, len(shape)
    while axis and (shape[axis - 1] == 1 or all(stride[axis - 1] == width for stride in strides)):
        axis -= 1
        width *= shape[axis]
    outer = [index for index in range(axis) if shape[index] != 1]
    assert len(outer) <= 1, "not parts along one axis"
    if not outer:
        return width, 1, [width] * len(strides)
    return width, shape[outer[0]], [stride[outer[0]] for stride in strides]
