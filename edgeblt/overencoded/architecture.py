"""Over-encoded byte transformers on devices."""

from edgeblt.bundle.architectures import Architecture
from edgeblt.overencoded.config import OverEncodedConfig
from edgeblt.overencoded.contract import STAGE, overencoded_contracts

ARCHITECTURE = Architecture(
    name="overencoded",
    config=OverEncodedConfig,
    stages=(STAGE,),
    contracts=overencoded_contracts,
    session="edgeblt.runtime.causal.session:CausalSession",
    stepper=None,
    targets=("cpu",),
)
