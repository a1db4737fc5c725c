"""The Byte Latent Transformer on the workbench."""

from edgeblt.bundle.config import ModelConfig, TransformerConfig
from edgeblt.bundle.over_encoding import OverEncoding
from edgeblt.export.architectures import CheckpointReference, WorkbenchArchitecture
from edgeblt.export.checkpoints.checkpoint import Checkpoint, blt_shapes
from edgeblt.export.graphs.decoder import decoder_graph
from edgeblt.export.graphs.encoder import encoder_graph
from edgeblt.export.graphs.global_transformer import global_graph
from edgeblt.export.graphs.patcher import patcher_graph


def describe(config: ModelConfig) -> dict[str, str]:
    """Windows, cross-attention and tables of the over-encoding family in words."""
    stacks = {"encoder and decoder": config.encoder, "patcher": config.patcher}
    windows = ", ".join(f"{name} {stack.window or 'none'}" for name, stack in stacks.items() if stack)
    described = {"windows": windows, "cross-attention": f"{config.cross_attention_k} vectors a patch"}
    if isinstance(config.hashes, OverEncoding):
        described["n-gram tables"] = config.hashes.describe(config.table_width)
    return described


def card(config: ModelConfig) -> tuple[str, str]:
    """Heading and body of the model card."""
    stacks = {"patcher": config.patcher, "encoder": config.encoder, "global": config.global_, "decoder": config.decoder}
    rows = "\n".join(f"| {name} | {_stack(stack)} |" for name, stack in stacks.items() if stack)
    tables = _tables(config)
    body = f"""| stage | layers |
| --- | --- |
{rows}

Patches: {config.patching.describe()}. Cross-attention: {config.cross_attention_k} vectors a patch. {tables}."""
    return "a Byte Latent Transformer", body


def _tables(config: ModelConfig) -> str:
    hashes = config.hashes
    if isinstance(hashes, OverEncoding):
        return f"Over-encoding: {hashes.describe(config.table_width)}"
    sizes = ", ".join(map(str, hashes.group_sizes))
    return f"N-gram hashes:\n{hashes.table_count} tables of {hashes.vocab_size:,} rows for {sizes} bytes"


def _stack(config: TransformerConfig) -> str:
    window = f", window {config.window}" if config.window else ""
    return f"{config.layer_count} x {config.hidden_size}, {config.head_count} heads{window}"


def reference(checkpoint: Checkpoint, device: str) -> CheckpointReference:
    """transformers' forward pass."""
    from edgeblt.export.reference import TransformersReference  # transformers is slow to import

    return TransformersReference.of(checkpoint, device)


ARCHITECTURE = WorkbenchArchitecture(
    name="blt",
    graphs={"patcher": patcher_graph, "encoder": encoder_graph, "global": global_graph, "decoder": decoder_graph},
    shapes=blt_shapes,
    open_form=lambda path, strict: None,  # `open_checkpoint` knows its forms itself
    describe=describe,
    card=card,
    reference=reference,
)
