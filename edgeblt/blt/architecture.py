"""The Byte Latent Transformer on devices."""

from edgeblt.bundle.architectures import Architecture
from edgeblt.bundle.config import ModelConfig
from edgeblt.bundle.contract import PORTABLE, STAGES, TARGETS, stage_contracts

ARCHITECTURE = Architecture(
    name="blt",
    config=ModelConfig,
    stages=STAGES,
    contracts=stage_contracts,
    session="edgeblt.runtime.session:Session",
    stepper="edgeblt.runtime.batch.patched:PatchedStepper",
    targets=(*TARGETS, PORTABLE),
)
