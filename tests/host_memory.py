"""Memory of the host behind the protocol of a device's: what a session does with a device's can run without one."""

import ctypes


class HostMemory:
    """A `DeviceMemory` whose device ONNX Runtime calls cpu. Every access must lie within what was allocated."""

    name = "cpu"

    def __init__(self) -> None:
        self._blocks: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self.copies = 0

    @property
    def allocated(self) -> int:
        """Blocks that were not freed."""
        return len(self._blocks)

    def allocate(self, size: int) -> int:
        block = ctypes.create_string_buffer(b"\xff" * max(size, 1), max(size, 1))  # NaN in every type
        self._blocks[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def free(self, address: int) -> None:
        del self._blocks[address]

    def copy(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int) -> None:
        self.copies += 1
        assert width > 0 and height > 0 and (height == 1 or min(target_pitch, source_pitch) >= width)
        ends = [
            begin + (height - 1) * pitch + width for begin, pitch in ((target, target_pitch), (source, source_pitch))
        ]
        assert self._holds(target, ends[0]) or self._holds(source, ends[1])
        assert ends[0] <= source or ends[1] <= target or (height > 1 and target_pitch == source_pitch), "they overlap"
        for row in range(height):
            ctypes.memmove(target + row * target_pitch, source + row * source_pitch, width)

    def clear(self, address: int, size: int) -> None:
        assert self._holds(address, address + size)
        ctypes.memset(address, 0, size)

    def _holds(self, begin: int, end: int) -> bool:
        return any(start <= begin and end <= start + len(block) for start, block in self._blocks.items())
