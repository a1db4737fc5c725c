"""The contract of MambaByte's one stage: `mamba.onnx`, bytes to next-byte logits, with the state of every layer.

Symbolic dimensions: T bytes of the chunk, at least 1, S slots of states, Q parts of the rows, none where all are of one
sequence, which has the one slot. A layer's states are `convolution_i`, its last inputs to the convolution, and
`scan_i`, its channels' states; each is an input `past_..` and an output `present_..`. Graphs of before have no slots.
"""

from collections.abc import Iterator, Mapping
from typing import Literal

from edgeblt.bundle.contract import CacheFormat, StageContract, StageName, Target, TensorSpec
from edgeblt.errors import EdgebltError
from edgeblt.mambabyte.config import BYTE_VALUES, TAPS, MambaByteConfig

STAGE: StageName = "mamba"
# Of each part the row after its last, the slot that it begins in, and the slot that it leaves its state in.
SLOT_INPUT = TensorSpec("sequences", "int64", ("Q", 3))


def state_specs(config: MambaByteConfig, direction: Literal["past", "present"]) -> Iterator[TensorSpec]:
    """Specifications of the states, layer by layer."""
    channels, slots = config.channel_count, ("S",) if config.has_slots else ()
    for layer in range(config.layer_count):
        yield TensorSpec(f"{direction}_convolution_{layer}", "float32", (*slots, TAPS - 1, channels))
        yield TensorSpec(f"{direction}_scan_{layer}", "float32", (*slots, config.state_size, channels))


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
            inputs=(
                TensorSpec("bytes", "int64", ("T",)),
                *state_specs(config, "past"),
                *((SLOT_INPUT,) if config.has_slots else ()),
            ),
            settings=(),
            outputs=(TensorSpec("logits", "float32", ("T", BYTE_VALUES)), *state_specs(config, "present")),
            cache=None,
        )
    }
