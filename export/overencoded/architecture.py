"""Over-encoded byte transformers on the workbench."""

from edgeblt.export.architectures import CheckpointReference, WorkbenchArchitecture
from edgeblt.export.checkpoints.checkpoint import Checkpoint
from edgeblt.export.overencoded.calibration import calibrate_overencoded
from edgeblt.export.overencoded.form import open_overencoded_form
from edgeblt.export.overencoded.graph import causal_graph
from edgeblt.export.overencoded.names import overencoded_shapes
from edgeblt.overencoded.config import OverEncodedConfig


def describe(config: OverEncodedConfig) -> dict[str, str]:
    """Layers, tables and heads in words."""
    return {"layers": _layers(config), "n-gram tables": _tables(config), "heads": _heads(config)}


def card(config: OverEncodedConfig) -> tuple[str, str]:
    """Heading and body of the model card."""
    body = f"{_layers(config)}. N-gram tables: {_tables(config)}. Heads: {_heads(config)}."
    return "a transformer on bytes with over-encoded input", body


def _layers(config: OverEncodedConfig) -> str:
    stack = config.transformer
    return f"{stack.layer_count} x {stack.hidden_size}, {stack.head_count} heads"


def _tables(config: OverEncodedConfig) -> str:
    return config.tables.describe(config.table_width) if config.tables else "none"


def _heads(config: OverEncodedConfig) -> str:
    return f"the next byte and {config.further_count} after it" if config.further_count else "the next byte"


def reference(checkpoint: Checkpoint, device: str) -> CheckpointReference:
    """The equations in float64."""
    from edgeblt.export.overencoded.reference import OverEncodedReference  # keeps its own small imports late

    return OverEncodedReference(checkpoint)


ARCHITECTURE = WorkbenchArchitecture(
    name="overencoded",
    graphs={"causal": causal_graph},
    shapes=overencoded_shapes,
    open_form=open_overencoded_form,
    describe=describe,
    card=card,
    reference=reference,
    calibrate=calibrate_overencoded,
)
