"""Memory in which arrays that pass between stages lie."""

from collections.abc import Mapping
from typing import NamedTuple

from edgeblt.bundle.contract import DType, StageContract, StageName
from edgeblt.runtime.state.device_array import DeviceMemory


class Homes(NamedTuple):
    """Memory of what passes between stages: a device's if both stages run there, else the host's (None)."""

    byte_vectors: DeviceMemory | None
    patch_vectors: DeviceMemory | None
    latents: DeviceMemory | None
    rows: DeviceMemory | None  # the decoder's own
    row_dtype: DType

    @classmethod
    def of(
        cls, memories: Mapping[StageName, DeviceMemory | None], contracts: Mapping[StageName, StageContract]
    ) -> "Homes":
        """Homes for stages that run in these memories."""
        encoder, global_, decoder = (memories[name] for name in ("encoder", "global", "decoder"))
        cache = contracts["decoder"].cache
        assert cache is not None
        return cls(encoder and decoder, encoder and global_, global_ and decoder, decoder, cache.angle_dtype)
