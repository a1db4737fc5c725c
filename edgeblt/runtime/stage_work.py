"""Work of a session's stages so far: runs, positions and seconds of each, and the bytes of weights they read."""

from collections.abc import Mapping
from dataclasses import dataclass

from edgeblt.bundle.contract import StageName
from edgeblt.bundle.weight_plan import StageWeights


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


def weight_bytes_by_stage(
    weights: Mapping[StageName, StageWeights], work: Mapping[StageName, StageWork]
) -> dict[StageName, int]:
    """Bytes of weights that this work read from memory, once a run of any length, where they exceed the caches."""
    return {
        name: weights[name].read_per_byte * done.runs
        + weights[name].read_per_patch * done.patch_runs
        + weights[name].rows_per_byte * done.positions
        for name, done in work.items()
    }


def weight_bytes_read(weights: Mapping[StageName, StageWeights], work: Mapping[StageName, StageWork]) -> int:
    """Bytes of weights that this work read from memory, all stages together."""
    return sum(weight_bytes_by_stage(weights, work).values())
