"""Work that a stage of a session has done so far."""

from dataclasses import dataclass


@dataclass
class StageWork:
    """Numbers of runs and positions of one stage, what they read of its cache, and the seconds they took."""

    runs: int = 0
    patch_runs: int = 0  # runs that completed patches, and so also read the weights that only patches need
    positions: int = 0  # bytes or, in the global stage, patches
    seconds: float = 0.0
    cache_bytes: int = 0  # bytes of the keys and values that attention read: in each run those in its windows

    def add(self, positions: int, patches: int, seconds: float, cache_bytes: int) -> None:
        self.runs += 1
        self.patch_runs += patches > 0
        self.positions += positions
        self.seconds += seconds
        self.cache_bytes += cache_bytes

    def since(self, earlier: "StageWork") -> "StageWork":
        """Work done after `earlier`, a copy of this object."""
        return StageWork(
            self.runs - earlier.runs,
            self.patch_runs - earlier.patch_runs,
            self.positions - earlier.positions,
            self.seconds - earlier.seconds,
            self.cache_bytes - earlier.cache_bytes,
        )
