"""transformers' forward pass in float64: what float32 computations, its own among them, are rounded from.

Casting a `BltForCausalLM` is not enough: its norms compute in float32 whatever they are given, and so do its rotations.
Angles stay float32 numbers, as they are part of the model: position times frequency, both float32. Logits are
rounded to float32 once, at the end.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.blt import modeling_blt

from edgeblt.ids import OFFSET

Doubles = NDArray[np.float64]

# The largest error of a float32 computation over a text, in that of transformers' own over the same text. Both round
# the same angles (`test_frequencies_are_those_of_transformers`), so they differ by the order of additions, whose
# errors are of one size, and by functions: ONNX Runtime's tanh is off by up to 3.3e-7. The largest ratios seen on the
# forty models of `tiny_models` were 1.58 for logits and 1.31 for entropies.
FACTOR = 4
# Steps of float32 at a text's largest value that a result may be off where transformers happens to be off by less.
STEPS = 8


def bound(exact: Doubles, float32: NDArray[np.float32]) -> float:
    """How far from `exact` a float32 computation may be, by how far transformers' `float32` results are."""
    measured = float(np.abs(float32.astype(np.float64) - exact).max(initial=0))
    return FACTOR * measured + STEPS * float(np.finfo(np.float32).eps) * float(np.abs(exact).max(initial=0))


class Float64Oracle:
    """A copy of a `BltForCausalLM` that computes in float64."""

    def __init__(self, model: Any) -> None:
        self.original, self.model = model, copy.deepcopy(model).double()

    def logits(self, ids: Sequence[int], starts: NDArray[np.bool_] | None = None) -> tuple[Doubles, NDArray[np.bool_]]:
        """[T, vocab], and [T]: whether the position after each id starts a patch; by its own rule, or by `starts`."""
        batch, lengths = list(ids), None
        if starts is None:
            # With a maximum patch length transformers drops a patch that would start right behind the last byte.
            batch.append(OFFSET)
        else:
            places = np.flatnonzero([True, *starts])
            lengths = torch.from_numpy(np.diff(places, append=len(ids) + 1))[None]
        seen: list[torch.Tensor] = []
        patcher = self.model.model.patcher
        hook = patcher and patcher.register_forward_hook(lambda module, inputs, output: seen.append(output[1]))
        with in_float64():
            output = self.model(torch.tensor([batch]), patch_lengths=lengths, use_cache=False)
        if hook:
            hook.remove()
        if starts is None:
            starts = np.ones(len(ids), np.bool_)
            if seen:
                begins = np.zeros(len(ids) + 2, np.bool_)
                begins[np.cumsum(seen[0][0].numpy())] = True
                starts = begins[1 : len(ids) + 1]
        return output.logits[0, : len(ids)].numpy().astype(np.float64), starts

    def entropies(self, ids: Sequence[int]) -> Doubles:
        """[T] nats; the model must have a patcher."""
        with in_float64():
            found: torch.Tensor = self.model.model.patcher(torch.tensor([list(ids)]))[0][0]
        assert found.dtype == torch.float64
        return found.numpy()


def _norm(self: Any, hidden: torch.Tensor) -> torch.Tensor:
    variance = hidden.pow(2).mean(-1, keepdim=True)
    return self.weight * (hidden * torch.rsqrt(variance + self.variance_epsilon))  # type: ignore[no-any-return]


def _rotations(self: Any, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    angles = position_ids[..., None].float() * self.inv_freq.float()
    wide = torch.repeat_interleave(angles, 2, dim=-1).double()
    return wide.cos() * self.attention_scaling, wide.sin() * self.attention_scaling


@contextmanager
def in_float64() -> Iterator[None]:
    """transformers' norms and rotations compute in float64 meanwhile."""
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(modeling_blt.BltRMSNorm, "forward", _norm)
        patch.setattr(modeling_blt.BltRotaryEmbedding, "forward", _rotations)
        yield


class Float32Results(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the names of operations that gave float32."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = function(*arguments, **(options or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
                self.names.add(str(function))
        return result
