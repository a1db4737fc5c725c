"""State of a sequence on a portable graph: the arrays that one run gives and the next one reads."""

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from edgeblt.bundle.config import ModelConfig
from edgeblt.bundle.contract import StageName
from edgeblt.bundle.portable.contract import portable_states

Arrays = Mapping[str, NDArray[Any]]  # by the name of the state; never changed, as states share them
_KEPT = 4  # former states to return to at once


class _Moment(NamedTuple):
    position: int
    patch_count: int
    arrays: Arrays


class ReadIds:
    """All ids read."""

    def __init__(self) -> None:
        self._ids: list[int] = []

    def ids(self, position: int) -> NDArray[np.int64]:
        """The first ids, int64 [position]."""
        return np.array(self._ids[:position], np.int64)

    def store(self, position: int, ids: NDArray[np.int64]) -> None:
        """Write ids from `position` on, in the place of all that was behind it."""
        self._ids[position:] = ids.tolist()


class PortableState:
    """Position, ids and arrays of one sequence, with the newest moments before, to which it can return."""

    def __init__(self, config: ModelConfig, threshold_change: float) -> None:
        self._config, self._threshold_change = config, threshold_change
        self.ids = ReadIds()
        self.clear()

    def clear(self) -> None:
        """Start again, from zeros."""
        arrays = {
            spec.name: np.zeros([size if isinstance(size, int) else 1 for size in spec.shape], spec.dtype)
            for spec in portable_states(self._config)
        }
        arrays["threshold_change"][0] = self._threshold_change
        self._now = _Moment(0, 0, arrays)
        self._earlier: deque[_Moment] = deque(maxlen=_KEPT)

    @property
    def position(self) -> int:
        """Number of ids read."""
        return self._now.position

    @property
    def patch_count(self) -> int:
        """Number of completed patches."""
        return self._now.patch_count

    @property
    def caches(self) -> dict[StageName, NoReturn]:
        """Buffers kept from run to run: none."""
        return {}

    @property
    def arrays(self) -> Arrays:
        return self._now.arrays

    @property
    def nbytes(self) -> int:
        """Bytes of the newest state."""
        return sum(array.nbytes for array in self._now.arrays.values())

    def growth(self, patches: int) -> int:
        """Bytes that so many more patches add."""
        cached = sum(array.nbytes for name, array in self.arrays.items() if name.startswith("global."))
        return patches * cached // (self.patch_count + 1)

    def append(self, ids: NDArray[np.int64], arrays: Arrays) -> None:
        """Take the state after `ids`."""
        self.ids.store(self.position, ids)
        self._earlier.append(self._now)
        self._now = _Moment(self.position + len(ids), int(arrays["patch_count"][0]), arrays)

    def can_rewind(self, position: int) -> bool:
        """Whether the state of that position is kept."""
        return any(moment.position == position for moment in self._earlier)

    def rewind(self, position: int) -> None:
        """Return to a state that is kept."""
        while self._now.position != position:
            self._now = self._earlier.pop()

    def copy_from(self, other: "PortableState") -> None:
        """Become the same; arrays are shared."""
        self._now, self._earlier = other._now, deque(other._earlier, _KEPT)
        self.ids.store(0, other.ids.ids(other.position))
