"""The README.md of a bundle: what it was made from and how to use it."""

import math

from edgeblt.bundle.config import TransformerConfig
from edgeblt.export.checkpoints.checkpoint import Checkpoint
from edgeblt.export.checkpoints.naming import origin


def model_card(checkpoint: Checkpoint, recipe: str, target: str) -> str:
    """The model card in Markdown."""
    config = checkpoint.config
    stacks = {"patcher": config.patcher, "encoder": config.encoder, "global": config.global_, "decoder": config.decoder}
    rows = "\n".join(f"| {name} | {_stack(stack)} |" for name, stack in stacks.items() if stack)
    weights = sum(math.prod(checkpoint.shape(name)) for name in checkpoint.names())
    hashes = config.hashes
    name = origin(checkpoint)
    return f"""# {name}, a Byte Latent Transformer for edgeblt

Exported from the checkpoint `{name}` with the recipe `{recipe}` for the target `{target}`:
{weights:,} weights. Reads and writes raw bytes.

| stage | layers |
| --- | --- |
{rows}

Patches: {config.patching.describe()}. Cross-attention: {config.cross_attention_k} vectors a patch. N-gram hashes:
{hashes.table_count} tables of {hashes.vocab_size:,} rows for {", ".join(map(str, hashes.group_sizes))} bytes.

    edgeblt generate {"<this directory>"} "Once upon a time"
    edgeblt inspect {"<this directory>"}
"""


def _stack(config: TransformerConfig) -> str:
    window = f", window {config.window}" if config.window else ""
    return f"{config.layer_count} x {config.hidden_size}, {config.head_count} heads{window}"
