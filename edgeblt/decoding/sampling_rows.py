"""Samples of several texts at once: each numpy function is called once for the rows of all of them."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeblt.decoding.cuts import Cuts
from edgeblt.decoding.sampling import Sampler

LEAST_ROWS = 2  # one row is sampled by its own sampler as fast


def foreseen_ids(samplers: Sequence[Sampler], rows: Sequence[NDArray[np.float32]]) -> list[int | None]:
    """The id that each sampler's `choose` gives for its row of logits [vocab], computed together.

    None where only `choose` can tell: for a sampler with rules or biases, a greedy one, unusable logits, and where no
    other sampler is of the same kind.
    """
    found: list[int | None] = [None] * len(samplers)
    kinds = defaultdict[object, list[int]](list)
    for place, sampler in enumerate(samplers):
        if sampler.kind:
            kinds[sampler.kind].append(place)
    for places in kinds.values():
        if len(places) >= LEAST_ROWS:
            ids = _foreseen([samplers[place] for place in places], np.stack([rows[place] for place in places]))
            for place, id in zip(places, ids, strict=True):
                found[place] = id
    return found


def _foreseen(samplers: list[Sampler], rows: NDArray[np.float32]) -> list[int | None]:
    """The same for samplers of one kind; rows [n, vocab]."""
    allowed = samplers[0].without_forbidden(rows)
    largest = allowed.max(axis=1)
    is_usable = np.isfinite(largest)
    if not is_usable.all():
        allowed[~is_usable] = 0
        largest[~is_usable] = 0
    temperatures = np.array([[sampler.temperature] for sampler in samplers])
    with np.errstate(all="ignore"):
        weights = np.exp((allowed.astype(np.float64) - largest[:, None].astype(np.float64)) / temperatures)
        Cuts.joined([sampler.cuts for sampler in samplers]).normalize(weights)
        times = np.full(weights.shape, np.inf)
        np.divide(np.stack([sampler.times for sampler in samplers]), weights, out=times, where=weights > 0)
    return [id if usable else None for id, usable in zip(times.argmin(axis=1).tolist(), is_usable, strict=True)]
