"""Selective scan and causal convolution of Mamba-1 with gradients, on the CPU: a C++ file compiled on first use."""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

STATES, LANES, TAPS, CHUNK = 16, 16, 4, 8  # the same in selective_scan.cpp
# Not -ffast-math: with it the library would round subnormal numbers to zero in the whole process that loads it.
_FLAGS = (
    "-O3", "-march=native", "-fassociative-math", "-freciprocal-math", "-ffinite-math-only", "-fno-signed-zeros",
    "-fno-trapping-math", "-fno-math-errno", "-mprefer-vector-width=512", "-shared", "-fPIC",
)  # fmt: skip


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled kernels. Raises RuntimeError where no C++ compiler does it."""
    source = Path(__file__).with_suffix(".cpp")
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "selective_scan.so"
        try:
            command = [os.environ.get("CXX", "g++"), *_FLAGS, "-o", str(built), str(source)]
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            detail = getattr(error, "stderr", None) or error
            raise RuntimeError(f"{source.name} does not compile ({detail}); install g++, or name one in CXX") from error
        return ctypes.CDLL(str(built))


def _call(name: str, shape: torch.Size, *arguments: Tensor | int) -> None:
    converted: list[Any] = [ctypes.c_int64(size) for size in shape]
    for argument in arguments:
        if isinstance(argument, Tensor):
            assert argument.dtype == torch.float32
            converted.append(ctypes.c_void_p(argument.data_ptr()))
        else:
            converted.append(ctypes.c_int64(argument))
    getattr(library(), name)(*converted)


def _row_stride(values: Tensor) -> int:
    """Floats from row to row of (B, T, D), a view of whole rows or of the same columns of them all."""
    batch, length, _ = values.shape
    assert values.stride(2) == 1 and (batch == 1 or values.stride(0) == length * values.stride(1))
    return values.stride(1)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, u: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        taps = kernel.t().contiguous()
        y = torch.empty(u.shape)
        _call("convolution_forward", u.shape, u, _row_stride(u), taps, bias, y)
        context.save_for_backward(u, taps, bias)
        return y

    @staticmethod
    def backward(context: Any, d_y: Tensor) -> tuple[Tensor, ...]:
        u, taps, bias = context.saved_tensors
        d_u, d_taps, d_bias = torch.empty(u.shape), torch.zeros_like(taps), torch.zeros_like(bias)
        stride = _row_stride(u)
        _call("convolution_backward", u.shape, u, stride, taps, bias, d_y.contiguous(), d_u, d_taps, d_bias)
        return d_u, d_taps.t(), d_bias


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, x: Tensor, raw: Tensor, decay: Tensor, inputs: Tensor, outputs: Tensor, skip: Tensor, z: Tensor
    ) -> Tensor:
        batch, length, channels = x.shape
        values = [value.contiguous() for value in (x, raw, decay.t(), inputs, outputs, skip)]
        y, steps = torch.empty(x.shape), torch.empty(x.shape)
        starts = torch.empty(batch, -(-length // CHUNK), channels * STATES)
        _call("scan_forward", x.shape, *values, z, _row_stride(z), y, steps, starts)
        context.save_for_backward(*values, z, steps, starts)
        return y

    @staticmethod
    def backward(context: Any, d_y: Tensor) -> tuple[Tensor, ...]:
        x, raw, decay, inputs, outputs, skip, z, steps, starts = context.saved_tensors
        d_x, d_raw, d_z = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
        d_decay, d_skip = torch.zeros_like(decay), torch.zeros_like(skip)
        d_inputs, d_outputs = torch.empty_like(inputs), torch.empty_like(outputs)
        values = (x, raw, decay, inputs, outputs, skip, z, _row_stride(z), steps, starts, d_y.contiguous())
        _call("scan_backward", x.shape, *values, d_x, d_raw, d_decay, d_inputs, d_outputs, d_skip, d_z)
        return d_x, d_raw, d_decay.t(), d_inputs, d_outputs, d_skip, d_z


def convolution(u: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """silu of a causal convolution of each channel. u: (B, T, D); kernel: (D, 4); bias: (D,). All float32."""
    _check(u, kernel.shape[1] == TAPS)
    result: Tensor = _Convolution.apply(u, kernel, bias)  # type: ignore[no-untyped-call]  # torch's own signature
    return result


def selective_scan(
    x: Tensor, raw: Tensor, decay: Tensor, inputs: Tensor, outputs: Tensor, skip: Tensor, z: Tensor
) -> Tensor:
    """y = (C s + skip x) silu(z), where s = exp(step decay) s + step x B and step = softplus(raw). All float32.

    x, raw, z: (B, T, D), D a multiple of 16; decay: (D, 16), negative; inputs (B) and outputs (C): (B, T, 16);
    skip: (D,). Gradients recompute the states from those kept every 8 steps.
    """
    _check(x, decay.shape[1] == STATES)
    result: Tensor = _Scan.apply(x, raw, decay, inputs, outputs, skip, z)  # type: ignore[no-untyped-call]
    return result


def _check(x: Tensor, fits: bool) -> None:
    if x.shape[2] % LANES or not fits:
        raise ValueError(
            f"the kernels take channels by {LANES}, {STATES} states and {TAPS} taps; x is {tuple(x.shape)}"
        )


def plain_convolution(u: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """The same as `convolution`, in plain torch and any float type."""
    padded = functional.pad(u.mT, (TAPS - 1, 0))
    return functional.silu(functional.conv1d(padded, kernel[:, None], bias, groups=len(kernel))).mT


def plain_scan(
    x: Tensor, raw: Tensor, decay: Tensor, inputs: Tensor, outputs: Tensor, skip: Tensor, z: Tensor
) -> Tensor:
    """The same as `selective_scan`, in plain torch and any float type."""
    steps = functional.softplus(raw)
    state, rows = x.new_zeros(x.shape[0], *decay.shape), []
    for t in range(x.shape[1]):
        added = (steps[:, t] * x[:, t])[..., None] * inputs[:, t, None, :]
        state = torch.exp(steps[:, t, :, None] * decay) * state + added
        rows.append((state * outputs[:, t, None, :]).sum(-1))
    return (torch.stack(rows, dim=1) + skip * x) * functional.silu(z)
