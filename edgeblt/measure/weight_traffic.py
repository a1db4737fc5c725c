"""Bytes of weights that runs of the stages read from memory."""

from collections.abc import Mapping

from edgeblt.bundle.contract import StageName
from edgeblt.bundle.weight_plan import StageWeights
from edgeblt.runtime.stage_work import StageWork


def weight_bytes_by_stage(
    weights: Mapping[StageName, StageWeights], work: Mapping[StageName, StageWork]
) -> dict[StageName, int]:
    """Bytes of weights that each stage read for this work, if weights exceed the caches.

    Every run reads them once, however many positions it computes.
    """
    return {
        name: weights[name].read_per_byte * done.runs
        + weights[name].read_per_patch * done.patch_runs
        + weights[name].rows_per_byte * done.positions
        for name, done in work.items()
    }


def weight_bytes_read(weights: Mapping[StageName, StageWeights], work: Mapping[StageName, StageWork]) -> int:
    """Bytes of weights that all stages together read for this work, if weights exceed the caches."""
    return sum(weight_bytes_by_stage(weights, work).values())
