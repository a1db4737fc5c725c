"""What is in a checkpoint: weights by stage, the hash tables apart."""

import math

from edgeblt.contract import STAGES
from edgeblt.export.checkpoint import Checkpoint
from edgeblt.inspection import Inspection, Part


def inspect_checkpoint(checkpoint: Checkpoint) -> Inspection:
    names = checkpoint.names()
    tables = [name for name in names if name == "encoder.hash_tables"]
    parts = []
    for stage in STAGES:
        own = [name for name in names if name.startswith(f"{stage}.") and name not in tables]
        parts.append(_part(checkpoint, stage, f"{len(own)} tensors", own))
        if stage == "encoder":
            parts.append(_part(checkpoint, stage, f"{checkpoint.config.hashes.table_count} hash tables", tables))
    description = {
        "patching": checkpoint.config.patching.describe(),
        "cross-attention": f"{checkpoint.config.cross_attention_k} vectors a patch",
        "unused tensors": ", ".join(checkpoint.unused_names()) or "none",
    }
    if checkpoint.record:
        record = checkpoint.record
        errors = ", ".join(f"{part} {value:.2g}" for part, value in record.relative_error.items())
        description |= {
            "quantized": f"from {record.source} by the recipe {record.recipe.name}",
            "calibrated on": record.calibration or "nothing",
            "relative error of the weights": errors or "not recorded",
        }
    return Inspection("checkpoint", str(checkpoint.path), description, tuple(part for part in parts if part.parameters))


def _part(checkpoint: Checkpoint, stage: str, content: str, names: list[str]) -> Part:
    dtypes = "/".join(sorted({checkpoint.dtype(name) for name in names}))
    parameters = sum(math.prod(checkpoint.shape(name)) for name in names)
    return Part(stage, content, dtypes, parameters, sum(checkpoint.stored_bytes(name) for name in names), None)
