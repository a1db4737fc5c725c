"""Configuration of a MambaByte."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

from edgeblt.bundle.architectures import NOTHING_ENDS, PatchlessConfig
from edgeblt.bundle.config import LAYER_LIMIT, LIMIT, Generation
from edgeblt.bundle.dataclass_json import LATER
from edgeblt.errors import EdgebltError

BYTE_VALUES = 256  # the model's own ids are the bytes
TAPS = 4  # inputs of each convolution; a smaller kernel is filled up with zeros
LARGEST_STATE = 256  # beyond any published model; bounds the work that a hostile file can cause
NORMS = ("layer", "rms")


@dataclass(frozen=True)
class MambaByteConfig(PatchlessConfig):
    """Layers of one width, each with `channel_count` channels of `state_size` numbers (widths in elements)."""

    architecture: ClassVar[str] = "mambabyte"

    hidden_size: int
    layer_count: int
    channel_count: int
    state_size: int
    step_rank: int  # inputs of the product that gives the steps
    kernel_size: int  # bytes that the convolution reads, at most TAPS
    norm: str  # layer, with a bias, or rms
    norm_epsilon: float
    generation: Generation = field(default=NOTHING_ENDS, metadata=LATER)
    has_slots: bool = field(default=False, metadata=LATER)  # runs take rows of several sequences, each with slots

    def __post_init__(self) -> None:
        limits = {
            "hidden_size": LIMIT - 1, "layer_count": LAYER_LIMIT, "channel_count": LIMIT - 1,
            "state_size": LARGEST_STATE, "step_rank": LIMIT - 1,
        }  # fmt: skip
        for name, most in limits.items():
            _check_range(name, getattr(self, name), 1, most)
        _check_range("kernel_size", self.kernel_size, 1, TAPS)
        if self.norm not in NORMS:
            raise EdgebltError(f"norm is {self.norm!r:.40}; use one of {', '.join(NORMS)}")
        if not (math.isfinite(self.norm_epsilon) and self.norm_epsilon > 0):
            raise EdgebltError(f"norm_epsilon is {self.norm_epsilon}; it must be a positive finite number")

    @property
    def selection_size(self) -> int:
        """Width of the product that gives steps, inputs and outputs of the states."""
        return self.step_rank + 2 * self.state_size

    @property
    def state_elements(self) -> int:
        """Numbers of a sequence's state, in all layers."""
        return self.layer_count * self.channel_count * (TAPS - 1 + self.state_size)


def _check_range(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise EdgebltError(f"{name} is {value}; it must be between {least} and {most}")
