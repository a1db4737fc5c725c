"""Contents of a checkpoint: weights by stage, hash tables apart, and the size of a bundle by recipe."""

import math
from collections.abc import Sequence
from pathlib import Path

from edgeblt.bundle.architectures import architecture
from edgeblt.bundle.weight_plan import typical_bytes_per_patch
from edgeblt.export.architectures import workbench_architecture
from edgeblt.export.checkpoints.checkpoint import Checkpoint
from edgeblt.export.plan import plan_checkpoint
from edgeblt.inspection import Inspection, Part
from edgeblt.quant.recipes.recipe import TABLES


def inspect_checkpoint(
    checkpoint: Checkpoint, recipes: Sequence[str | Path] = (), bytes_per_patch: float | None = None
) -> Inspection:
    """Contents of a checkpoint; reads no weights. `recipes`: names or files to plan besides the packaged ones.

    `bytes_per_patch` None is the usual number. Raises EdgebltError for invalid recipes and numbers.
    """
    plans = plan_checkpoint(checkpoint, recipes, typical_bytes_per_patch(checkpoint.config.patching, bytes_per_patch))
    names = checkpoint.names()
    tables = [name for name in names if name.endswith(TABLES)]
    parts = []
    config = checkpoint.config
    for stage in architecture(config.architecture).stages:
        own = [name for name in names if name.startswith(f"{stage}.") and name not in tables]
        parts.append(_part(checkpoint, stage, f"{len(own)} tensors", own))
        if any(name.startswith(f"{stage}.") for name in tables):
            parts.append(_part(checkpoint, stage, f"{config.table_count} hash tables", tables))
    others = workbench_architecture(config.architecture).describe(config)
    described = {"windows": others.pop("windows")} if "windows" in others else {}
    description = {
        "patching": config.patching.describe(),
        **described,
        "a text ends with": checkpoint.config.generation.describe_ends(),
        "sampling": checkpoint.config.generation.describe_sampling(),
        **others,
        "unused tensors": ", ".join(checkpoint.unused_names()) or "none",
    }
    if checkpoint.record:
        record = checkpoint.record
        errors = ", ".join(f"{part} {value:.2g}" for part, value in record.relative_error.items())
        description |= {
            "quantized": f"from {record.source} by the recipe {record.recipe.name}",
            "keys and values": record.recipe.kv_cache,
            "calibrated on": record.calibration or "nothing",
            "relative error of the weights": errors or "not recorded",
        }
    shown = tuple(part for part in parts if part.parameters)
    return Inspection("checkpoint", str(checkpoint.path), description, shown, plans, notes=checkpoint.notes)


def _part(checkpoint: Checkpoint, stage: str, content: str, names: list[str]) -> Part:
    dtypes = "/".join(sorted({checkpoint.dtype(name) for name in names}))
    parameters = sum(math.prod(checkpoint.shape(name)) for name in names)
    return Part(stage, content, dtypes, parameters, sum(checkpoint.stored_bytes(name) for name in names), None)
