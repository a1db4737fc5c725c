"""MambaByte on the workbench."""

from edgeblt.export.architectures import CheckpointReference, WorkbenchArchitecture
from edgeblt.export.checkpoints.checkpoint import Checkpoint
from edgeblt.export.mambabyte.calibration import calibrate_mambabyte
from edgeblt.export.mambabyte.form import open_mambabyte_form
from edgeblt.export.mambabyte.graph import mambabyte_graph
from edgeblt.export.mambabyte.names import mambabyte_shapes
from edgeblt.mambabyte.config import MambaByteConfig


def describe(config: MambaByteConfig) -> dict[str, str]:
    """Layers and state in words."""
    return {"layers": _layers(config), "state": f"{4 * config.state_elements:,} bytes, however long the text"}


def card(config: MambaByteConfig) -> tuple[str, str]:
    """Heading and body of the model card."""
    body = f"{_layers(config)}. The state takes {4 * config.state_elements:,} bytes, however long the text."
    return "a MambaByte", body


def _layers(config: MambaByteConfig) -> str:
    norm = "RMSNorm" if config.norm == "rms" else "LayerNorm"
    return (
        f"{config.layer_count} x {config.hidden_size}, {config.channel_count} channels of {config.state_size} states, "
        f"{norm}"
    )


def reference(checkpoint: Checkpoint, device: str) -> CheckpointReference:
    """The paper's recurrence in float64."""
    from edgeblt.export.mambabyte.reference import MambaByteReference  # imports the runtime

    return MambaByteReference(checkpoint)


ARCHITECTURE = WorkbenchArchitecture(
    name="mambabyte",
    graphs={"mamba": mambabyte_graph},
    shapes=mambabyte_shapes,
    open_form=open_mambabyte_form,
    describe=describe,
    card=card,
    reference=reference,
    calibrate=calibrate_mambabyte,
)
