"""Work that a stage of a session has done so far."""

from dataclasses import dataclass


@dataclass
class StageWork:
    """Numbers of runs and positions of one stage, and the seconds they took."""

    runs: int = 0
    patch_runs: int = 0  # runs that completed patches, and so also read the weights that only patches need
    positions: int = 0  # bytes or, in the global stage, patches
    seconds: float = 0.0

    def add(self, positions: int, patches: int, seconds: float) -> None:
        self.runs += 1
        self.patch_runs += patches > 0
        self.positions += positions
        self.seconds += seconds

    def since(self, earlier: "StageWork") -> "StageWork":
        """Work done after `earlier`, a copy of this object."""
        return StageWork(
            self.runs - earlier.runs,
            self.patch_runs - earlier.patch_runs,
            self.positions - earlier.positions,
            self.seconds - earlier.seconds,
        )
