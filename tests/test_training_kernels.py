"""The training kernels of tools/comparison against plain torch in float64: values and all gradients."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

TOOLS = str(Path(__file__).parents[1] / "tools")


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(TOOLS)
    from comparison import selective_scan

    try:
        selective_scan.library()
    except RuntimeError as error:
        pytest.skip(str(error))
    yield selective_scan
    for name in [name for name in sys.modules if name.startswith("comparison")]:
        del sys.modules[name]


def differences(
    fast: Callable[..., Tensor], plain: Callable[..., Tensor], arguments: tuple[Tensor, ...], weights: Tensor
) -> list[float]:
    """Largest difference in values and in each gradient, relative to the largest entry of what it should be."""
    found: list[list[Tensor]] = []
    for function, kind in ((fast, torch.float32), (plain, torch.float64)):
        leaves = [argument.detach().to(kind).requires_grad_() for argument in arguments]
        value = function(*leaves)
        torch.autograd.backward((value * weights.to(kind)).sum())
        found.append([value.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)])
    return [float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in zip(*found, strict=True)]


@pytest.mark.parametrize(("batch", "length", "channels"), [(1, 1, 16), (2, 31, 32), (2, 32, 16), (3, 77, 48)])
def test_scan(kernels: ModuleType, batch: int, length: int, channels: int) -> None:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x, raw, z, weights = (normal(batch, length, channels) for _ in range(4))
    arguments = (x, 3 * raw - 2, -torch.exp(normal(channels, 16)), normal(batch, length, 16), normal(batch, length, 16),
                 normal(channels), 4 * z)  # fmt: skip
    assert max(differences(kernels.selective_scan, kernels.plain_scan, arguments, weights)) < 1e-5


@pytest.mark.parametrize(("batch", "length", "channels"), [(1, 1, 16), (1, 3, 16), (2, 50, 48)])
def test_convolution(kernels: ModuleType, batch: int, length: int, channels: int) -> None:
    generator = torch.Generator().manual_seed(length)
    u, weights = (torch.randn(batch, length, channels, generator=generator) for _ in range(2))
    arguments = (u, torch.randn(channels, 4, generator=generator), torch.randn(channels, generator=generator))
    assert max(differences(kernels.convolution, kernels.plain_convolution, arguments, weights)) < 3e-6


def test_half_of_a_row_is_taken_without_a_copy(kernels: ModuleType) -> None:
    left, right = torch.randn(2, 40, 64).chunk(2, dim=-1)
    kernel, bias, copied = torch.randn(32, 4), torch.randn(32), left.contiguous()
    assert torch.equal(kernels.convolution(left, kernel, bias), kernels.convolution(copied, kernel, bias))
    rest = (copied, -torch.rand(32, 16), torch.randn(2, 40, 16), torch.randn(2, 40, 16), torch.randn(32))
    expected = kernels.selective_scan(copied, *rest, right.contiguous())
    assert torch.equal(kernels.selective_scan(copied, *rest, right), expected)


def test_a_shape_that_does_not_fit_is_refused(kernels: ModuleType) -> None:
    with pytest.raises(ValueError, match="channels by 16"):
        kernels.convolution(torch.zeros(1, 4, 20), torch.zeros(20, 4), torch.zeros(20))
