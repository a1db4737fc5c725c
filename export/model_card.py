"""The README.md of a bundle: what it was made from and how to use it."""

import math

from edgeblt.export.architectures import workbench_architecture
from edgeblt.export.checkpoints.checkpoint import Checkpoint
from edgeblt.export.checkpoints.naming import origin


def model_card(checkpoint: Checkpoint, recipe: str, target: str) -> str:
    """The model card in Markdown."""
    config = checkpoint.config
    kind, body = workbench_architecture(config.architecture).card(config)
    weights = sum(math.prod(checkpoint.shape(name)) for name in checkpoint.names())
    name = origin(checkpoint)
    return f"""# {name}, {kind} for edgeblt

Exported from the checkpoint `{name}` with the recipe `{recipe}` for the target `{target}`:
{weights:,} weights. Reads and writes raw bytes.

{body}

    edgeblt generate {"<this directory>"} "Once upon a time"
    edgeblt inspect {"<this directory>"}
"""
