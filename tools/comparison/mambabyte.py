"""A MambaByte for training on a CPU, with the names of mamba-ssm's checkpoints."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from comparison.selective_scan import STATES, TAPS, convolution, selective_scan

BYTE_VALUES = 256
LEAST_STEP, LARGEST_STEP = 0.001, 0.1  # range of the steps that biases begin with (Mamba, section 3.6)


class Mixer(nn.Module):
    """One selective state-space layer: width to 2 x width channels and back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        channels, self.rank = 2 * width, math.ceil(width / 16)
        self.in_proj = nn.Linear(width, 2 * channels, bias=False)
        self.conv1d = nn.Conv1d(channels, channels, TAPS, groups=channels)
        self.x_proj = nn.Linear(channels, self.rank + 2 * STATES, bias=False)
        self.dt_proj = nn.Linear(self.rank, channels)
        self.A_log = nn.Parameter(torch.arange(1.0, STATES + 1).log().repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))
        self.out_proj = nn.Linear(channels, width, bias=False)
        nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
        steps = torch.exp(torch.empty(channels).uniform_(math.log(LEAST_STEP), math.log(LARGEST_STEP)))
        with torch.no_grad():
            self.dt_proj.bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # softplus of it is the step

    def forward(self, normed: Tensor) -> Tensor:
        """(B, T, width) to the same; recurrence and gates in float32 under autocast too."""
        u, gate = self.in_proj(normed).float().chunk(2, dim=-1)
        x = convolution(u, self.conv1d.weight[:, 0], self.conv1d.bias)  # type: ignore[arg-type]  # it has a bias
        delta, inputs, outputs = self.x_proj(x).split([self.rank, STATES, STATES], dim=-1)
        raw = functional.linear(delta, self.dt_proj.weight).float() + self.dt_proj.bias
        y = selective_scan(x, raw, -torch.exp(self.A_log), inputs.float(), outputs.float(), self.D, gate)
        mixed: Tensor = self.out_proj(y)
        return mixed.float()


class MambaLayer(nn.Module):
    """Norm and mixer of one layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.mixer = nn.LayerNorm(width), Mixer(width)


class Backbone(nn.Module):
    """All but the head."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(BYTE_VALUES, width)
        self.layers = nn.ModuleList(MambaLayer(width) for _ in range(layers))
        self.norm_f = nn.LayerNorm(width)


class MambaByte(nn.Module):
    """Logits (B, T, 256) of the byte after each of `data`, int64 (B, T) in 0..255, from nothing before the first."""

    def __init__(self, width: int, layers: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.config: dict[str, Any] = {
            "d_model": width, "n_layer": layers, "vocab_size": BYTE_VALUES, "ssm_cfg": {"expand": 2},
            "rms_norm": False, "residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 8,
            "tie_embeddings": False,
        }  # fmt: skip
        self.backbone = Backbone(width, layers)
        self.lm_head = nn.Linear(width, BYTE_VALUES, bias=False)
        nn.init.normal_(self.backbone.embedding.weight, std=0.02)
        nn.init.zeros_(self.lm_head.weight)
        for layer in self.backbone.layers:
            weight: Any = layer.mixer.out_proj.weight  # type: ignore[union-attr]
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
            weight.data /= math.sqrt(layers)

    def forward(self, data: Tensor) -> Tensor:
        residual = self.backbone.embedding(data)
        for layer in self.backbone.layers:
            residual = residual + layer.mixer(layer.norm(residual))  # type: ignore[operator]
        logits: Tensor = self.lm_head(self.backbone.norm_f(residual))
        return logits.float()
