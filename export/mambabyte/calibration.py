"""MambaByte in torch for calibration, one layer after the other, every matrix product left to the caller.

As `quant.calibration.forward` for a BLT: a text's values are [copies, T, width] float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgeblt.ids import OFFSET
from edgeblt.mambabyte.config import MambaByteConfig
from edgeblt.quant.calibration.activations import Values, each
from edgeblt.quant.calibration.forward import Lookup, Multiply, Read

_TOGETHER = 64  # bytes whose states are in memory at a time


def calibrate_mambabyte(
    config: MambaByteConfig, multiply: Multiply, read: Read, lookup: Lookup, texts: Sequence[Tensor]
) -> None:
    """Run each text of ids, int64 [T] with BOS before its bytes, through the model, which reads the bytes."""
    forward = _Forward(config, multiply, read)
    hidden = lookup("mamba.embedding", [text[1:, None] - OFFSET for text in texts])
    for layer in range(config.layer_count):
        hidden = forward.layer(f"mamba.layers.{layer}", hidden)
    multiply(forward.norm("mamba.norm", hidden), ["mamba.head"], lambda logits: logits)


@dataclass(frozen=True)
class _Forward:
    config: MambaByteConfig
    multiply: Multiply
    read: Read

    def norm(self, name: str, hidden: Values) -> Values:
        config, weight = self.config, self.read(name)
        if config.norm == "rms":
            return each(lambda value: functional.rms_norm(value, weight.shape, weight, config.norm_epsilon), hidden)
        bias = self.read(f"{name}_bias")
        return each(lambda value: functional.layer_norm(value, weight.shape, weight, bias, config.norm_epsilon), hidden)

    def layer(self, prefix: str, hidden: Values) -> Values:
        """One layer, its residual included."""
        config = self.config

        def read(part: str) -> Tensor:
            return self.read(f"{prefix}.{part}")

        split = self.multiply(self.norm(f"{prefix}.norm", hidden), [f"{prefix}.in_proj"], lambda both: both)
        convolve = partial(_convolve, read("convolution"), read("convolution_bias"))
        x = each(lambda both: convolve(both[..., : config.channel_count]), split)
        selected = self.multiply(x, [f"{prefix}.x_proj"], lambda selected: selected)
        delta = each(lambda selected: selected[..., : config.step_rank], selected)
        scan = partial(_scan, config, -read("a_log").exp(), read("dt_bias"), read("skip"))
        scanned = self.multiply(delta, [f"{prefix}.dt_proj"], scan, x, selected, split)
        return self.multiply(scanned, [f"{prefix}.out_proj"], torch.add, hidden)


def _convolve(kernel: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """Causal convolution and SiLU of [copies, T, channels]."""
    channels, _, size = kernel.shape
    padded = functional.pad(x.transpose(1, 2), (size - 1, 0))
    return functional.silu(functional.conv1d(padded, kernel, bias, groups=channels)).transpose(1, 2)


def _scan(config: MambaByteConfig, decay: Tensor, bias: Tensor, skip: Tensor, *values: Tensor) -> Tensor:
    """Gated results of the states [copies, T, channels], from steps before their bias, x, selection and split."""
    step, x, selected, split = values
    step = functional.softplus(step + bias)
    inputs, outputs = torch.tensor_split(selected[..., config.step_rank :], 2, dim=-1)
    state, scanned = np.zeros((len(x), *decay.shape), np.float32), torch.empty_like(x)
    for start in range(0, x.shape[1], _TOGETHER):
        some = slice(start, start + _TOGETHER)
        kept = torch.exp(step[:, some, :, None] * decay)
        states = (step * x)[:, some, :, None] * inputs[:, some, None]
        for before, new in zip(kept.numpy().swapaxes(0, 1), states.numpy().swapaxes(0, 1), strict=True):
            np.multiply(before, state, out=before)
            np.add(new, before, out=new)
            state = new
        scanned[:, some] = (states @ outputs[:, some, :, None])[..., 0]
    return (scanned + skip * x) * functional.silu(split[..., config.channel_count :])
