"""Choice of feed-forward channels to remove: those whose loss the others can best compensate.

The second-order measure of the optimal brain surgeon, applied to columns as in Kurtic et al., "ZipLM" (arXiv
2302.04089): with P the inverse of the damped Gram matrix of what `down` reads, removing channel j costs
|down[:, j]|^2 / P[j, j].
"""

import torch
from torch import Tensor

from edgeblt.quant.formats.weight_format import Matrix
from edgeblt.quant.methods.channels import Channels
from edgeblt.quant.methods.gptq import damped

STEPS = 128  # steps for removing all channels; fewer steps ignore more of what channels removed together share


def choose_channels(down: Matrix, gram: Tensor, count: int) -> Channels:
    """The `count` channels to keep of `down` [rows, channels]; `gram` of its inputs, float64, is not changed.

    A few channels are removed at a time; the others then compensate them, and are ranked again.
    """
    at_a_time = max(len(gram) // STEPS, 1)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped(gram.clone())))
    left = torch.from_numpy(down).double()
    left[:, gram.diagonal() == 0] = 0  # a channel that is always 0 costs nothing
    kept = torch.ones(len(gram), dtype=torch.bool)
    for remaining in range(len(gram) - count, 0, -at_a_time):
        costs = left.square().sum(dim=0) / inverse.diagonal()
        costs[~kept] = torch.inf
        gone = torch.argsort(costs, stable=True)[: min(remaining, at_a_time)]
        rows = inverse[gone]
        solved = torch.linalg.solve(rows[:, gone], rows)
        left -= left[:, gone] @ solved
        inverse.addmm_(rows.T, solved, alpha=-1)
        kept[gone] = False
    return kept.nonzero()[:, 0].numpy()
