"""Which feed-forward channels go: those whose loss the others can best make up for.

The second-order measure of the optimal brain surgeon, applied to columns as in Kurtic et al., "ZipLM" (arXiv
2302.04089): with P the inverse of the damped Gram matrix of what `down` reads, removing channel j costs
|down[:, j]|^2 / P[j, j].
"""

import torch
from torch import Tensor

from edgeblt.quant.channels import Channels
from edgeblt.quant.formats import Matrix
from edgeblt.quant.gptq import damped

_AT_A_TIME = 16  # channels removed before the others are measured again


def choose_channels(down: Matrix, gram: Tensor, count: int) -> Channels:
    """The `count` channels to keep of `down` [rows, channels]; `gram` is that of its inputs, float64, and stays.

    A few go at a time; then the others make up for them, and are measured again.
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped(gram.clone())))
    left = torch.from_numpy(down).double()
    kept = torch.ones(len(gram), dtype=torch.bool)
    for remaining in range(len(gram) - count, 0, -_AT_A_TIME):
        costs = left.square().sum(dim=0) / inverse.diagonal()
        costs[~kept] = torch.inf
        gone = torch.argsort(costs, stable=True)[: min(remaining, _AT_A_TIME)]
        rows = inverse[gone]
        solved = torch.linalg.solve(rows[:, gone], rows)
        left -= left[:, gone] @ solved
        inverse.addmm_(rows.T, solved, alpha=-1)
        kept[gone] = False
    return kept.nonzero()[:, 0].numpy()
