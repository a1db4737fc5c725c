"""The contract of MambaByte's one stage: `mamba.onnx`, bytes to next-byte logits, with the state of every layer.

Symbolic dimension: T bytes of the chunk, at least 1. A layer's states are `convolution_i`, its last inputs to the
convolution, and `scan_i`, its channels' states; each is an input `past_..` and an output `present_..`.
"""

from collections.abc import Iterator, Mapping
from typing import Literal

from edgeblt.bundle.contract import CacheFormat, StageContract, StageName, Target, TensorSpec
from edgeblt.errors import EdgebltError
from edgeblt.mambabyte.config import BYTE_VALUES, TAPS, MambaByteConfig

STAGE: StageName = "mamba"


def state_specs(config: MambaByteConfig, direction: Literal["past", "present"]) -> Iterator[TensorSpec]:
    """Specifications of the states, layer by layer."""
    channels = config.channel_count
    for layer in range(config.layer_count):
        yield TensorSpec(f"{direction}_convolution_{layer}", "float32", (TAPS - 1, channels))
        yield TensorSpec(f"{direction}_scan_{layer}", "float32", (config.state_size, channels))


def mambabyte_contracts(
    config: MambaByteConfig,
    targets: Mapping[StageName, Target] | None = None,
    caches: Mapping[StageName, CacheFormat] | None = None,
) -> dict[StageName, StageContract]:
    """The contract of the one stage.

    Raises EdgebltError for another target than cpu. There are no keys and values, so `caches` changes nothing.
    """
    if targets and targets[STAGE] != "cpu":
        raise EdgebltError(f"target is {targets[STAGE]}; a MambaByte runs on the cpu only")
    return {
        STAGE: StageContract(
            STAGE,
            "cpu",
            inputs=(TensorSpec("bytes", "int64", ("T",)), *state_specs(config, "past")),
            settings=(),
            outputs=(TensorSpec("logits", "float32", ("T", BYTE_VALUES)), *state_specs(config, "present")),
            cache=None,
        )
    }
