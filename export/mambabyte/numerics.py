"""MambaByte in numpy, one whole text at once without cache: the reference, in float64 or any other float type.

Each step follows the Mamba paper's recurrence (Gu and Dao 2023, algorithm 2 and equation 2a):

    r += h;  u = norm(r);  x, z = split(in_proj u);  x = silu(convolution of the last bytes' x, + bias)
    delta, B, C = split(x_proj x);  dt = softplus(dt_proj delta + dt_bias)
    s = exp(-dt exp(a_log)) s + dt x B;  y = (C s + skip x) silu(z);  h = out_proj y
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edgeblt.mambabyte.config import MambaByteConfig

Numbers = NDArray[Any]  # floats of any one type
Read = Callable[[str], NDArray[np.float32]]


def mambabyte_logits(config: MambaByteConfig, read: Read, data: bytes, dtype: DTypeLike = np.float64) -> Numbers:
    """Logits [len(data), 256] for the byte after each byte.

    read: a weight by its canonical name.
    dtype: type of all that is computed.
    """

    def weight(name: str) -> Numbers:
        found: Numbers = read(f"mamba.{name}").astype(dtype)
        return found

    ids = np.frombuffer(data, np.uint8)
    residual = weight("embedding")[ids]
    for layer in range(config.layer_count):
        normed = _norm(config, weight, f"layers.{layer}.norm", residual)
        residual = residual + _mixer(config, weight, f"layers.{layer}.", normed)
    logits: Numbers = _norm(config, weight, "norm", residual) @ weight("head").T
    return logits


def _norm(config: MambaByteConfig, weight: Callable[[str], Numbers], name: str, values: Numbers) -> Numbers:
    if config.norm == "rms":
        scaled = values / np.sqrt((values**2).mean(-1, keepdims=True) + config.norm_epsilon)
        return np.asarray(scaled * weight(name))
    centred = values - values.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + config.norm_epsilon)
    return np.asarray(scaled * weight(name) + weight(f"{name}_bias"))


def _mixer(config: MambaByteConfig, every: Callable[[str], Numbers], prefix: str, normed: Numbers) -> Numbers:
    def weight(part: str) -> Numbers:
        return every(prefix + part)

    x, gate = np.split(normed @ weight("in_proj").T, 2, axis=-1)
    x = silu(_convolution(x, weight("convolution")[:, 0], weight("convolution_bias")))
    selected = x @ weight("x_proj").T
    cuts = [config.step_rank, config.step_rank + config.state_size]
    delta, inputs, outputs = np.split(selected, cuts, axis=-1)
    step = softplus(delta @ weight("dt_proj").T + weight("dt_bias"))
    scanned = _scan(x, step, -np.exp(weight("a_log")), inputs, outputs)
    result: Numbers = (scanned + weight("skip") * x) * silu(gate) @ weight("out_proj").T
    return result


def _convolution(x: Numbers, kernel: Numbers, bias: Numbers) -> Numbers:
    """`x` [T, channels] and `kernel` [channels, K]; each row reads itself and the K - 1 rows before it."""
    size = kernel.shape[1]
    padded = np.concatenate([np.zeros((size - 1, x.shape[1]), x.dtype), x])
    total = np.zeros_like(x) + bias
    for tap in range(size):
        total = total + padded[tap : tap + len(x)] * kernel[:, tap]
    return total


def _scan(x: Numbers, step: Numbers, decay: Numbers, inputs: Numbers, outputs: Numbers) -> Numbers:
    state, scanned = np.zeros_like(decay), np.empty_like(x)
    for t in range(len(x)):
        state = np.exp(step[t][:, None] * decay) * state + (step[t] * x[t])[:, None] * inputs[t]
        scanned[t] = state @ outputs[t]
    return scanned


def silu(values: Numbers) -> Numbers:
    """values * sigmoid(values)"""
    return np.asarray(values * np.exp(-np.logaddexp(0, -values)))


def softplus(values: Numbers) -> Numbers:
    """log(1 + e ** values)"""
    return np.asarray(np.logaddexp(0, values))
