"""MambaByte on devices."""

from edgeblt.bundle.architectures import Architecture
from edgeblt.mambabyte.config import MambaByteConfig
from edgeblt.mambabyte.contract import STAGE, mambabyte_contracts

ARCHITECTURE = Architecture(
    name="mambabyte",
    config=MambaByteConfig,
    stages=(STAGE,),
    contracts=mambabyte_contracts,
    session="edgeblt.runtime.recurrent.session:RecurrentSession",
    stepper="edgeblt.runtime.recurrent.stepper:RecurrentStepper",
    targets=("cpu",),
)
