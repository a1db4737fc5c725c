"""Activations of a model during calibration: one tensor for each text, in memory while there is room.

A text goes through a layer on its own, but a matrix is only encoded when all texts have reached it. So every text's
values wait before every matrix, together far more than fits beside a large model: beyond a limit they wait on disk.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Values:
    """One tensor for each text; each is computed or read anew whenever it is asked for."""

    count: int
    get: Callable[[int], Tensor]

    def __iter__(self) -> Iterator[Tensor]:
        return (self.get(index) for index in range(self.count))


def each(function: Callable[..., Tensor], *values: Values) -> Values:
    """`function` of every text's tensors, computed when they are read."""
    return Values(values[0].count, lambda index: function(*(value.get(index) for value in values)))


class Scratch:
    """Storage of values: `limit` bytes in memory, the rest in an unnamed file that is deleted with the process.

    A context manager; values can be read only inside it. Raises OSError where the file cannot be written.
    """

    def __init__(self, directory: Path, limit: int) -> None:
        self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115  (closed by `__exit__`)
        self._left = limit
        self._free: dict[int, list[int]] = {}  # places in the file by their size
        self._end = 0

    def __enter__(self) -> "Scratch":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def keep(self, values: Values) -> Values:
        """Computes the values now, each once, and stores them."""
        kept = [self._keep(tensor) for tensor in values]
        return Values(len(kept), lambda index: kept[index].get())

    def _keep(self, tensor: Tensor) -> "_InMemory | _OnDisk":
        size = tensor.nbytes
        if size <= self._left:
            self._left -= size
            return _InMemory(self, tensor.contiguous().clone())
        if self._free.get(size):
            place = self._free[size].pop()
        else:
            place, self._end = self._end, self._end + size
        self._file.seek(place)
        data = tensor.contiguous().numpy().reshape(-1).data.cast("B")
        while data:
            data = data[self._file.write(data) :]
        return _OnDisk(self, place, tuple(tensor.shape))

    def _read(self, place: int, shape: tuple[int, ...]) -> Tensor:
        values = np.empty(shape, np.float32)
        self._file.seek(place)
        count = self._file.readinto(values.reshape(-1).data.cast("B"))
        assert count == values.nbytes, (count, shape)
        return torch.from_numpy(values)


@dataclass(frozen=True)
class _InMemory:
    scratch: Scratch
    tensor: Tensor

    def get(self) -> Tensor:
        return self.tensor

    def __del__(self) -> None:
        self.scratch._left += self.tensor.nbytes


@dataclass(frozen=True)
class _OnDisk:
    """A place in the scratch file, reused when nothing refers to it any more."""

    scratch: Scratch
    place: int
    shape: tuple[int, ...]

    def get(self) -> Tensor:
        return self.scratch._read(self.place, self.shape)

    def __del__(self) -> None:
        size = 4 * int(np.prod(self.shape))
        self.scratch._free.setdefault(size, []).append(self.place)
