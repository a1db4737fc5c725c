"""Work of a session's stages so far: runs, positions and seconds of each, and the bytes of weights they read."""

from dataclasses import dataclass


@dataclass
class StageWork:
    runs: int = 0
    patch_runs: int = 0  # runs that completed patches, and so read the weights for these too
    positions: int = 0  # bytes or, in the global stage, patches
    seconds: float = 0.0

    def add(self, positions: int, patches: int, seconds: float) -> None:
        self.runs += 1
        self.patch_runs += patches > 0
        self.positions += positions
        self.seconds += seconds

    def since(self, earlier: "StageWork") -> "StageWork":
        return StageWork(
            self.runs - earlier.runs,
            self.patch_runs - earlier.patch_runs,
            self.positions - earlier.positions,
            self.seconds - earlier.seconds,
        )
