"""Use of the hash tables' rows by a text, and the fewest rows that carry a share of its lookups."""

import numpy as np
import torch
from numpy.typing import NDArray

from edgeblt.bundle.config import ModelConfig
from edgeblt.errors import EdgebltError
from edgeblt.ids import BOS, encode
from edgeblt.quant.calibration.forward import hash_rows

AT_A_TIME = 1 << 16  # bytes of the text


def count_hits(text: bytes, config: ModelConfig) -> NDArray[np.int64]:
    """Number of lookups of each row of the fused tables when `text` is read after BOS: [rows]."""
    rows, context = config.hashes.row_count, config.hashes.context
    ids = torch.from_numpy(np.append(BOS, encode(text)))
    hits = np.zeros(rows, np.int64)
    for start in range(0, len(ids), AT_A_TIME):
        first = max(start - context, 0)  # the first n-grams of this part begin before it
        found = hash_rows(ids[first : start + AT_A_TIME], config)[start - first :]
        hits += np.bincount(found.numpy().reshape(-1), minlength=rows)
    return hits


def rows_worth_keeping(hits: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    """The most used rows that together carry at least `share` of all hits, in (0, 1]; never an unused one: [rows]."""
    if not hits.any():
        raise EdgebltError("the calibration text is empty, so nothing says which rows of the hash tables are used")
    order = np.argsort(-hits, kind="stable")
    carried = np.cumsum(hits[order])
    count = int(np.searchsorted(carried, share * carried[-1])) + 1
    kept = np.zeros(len(hits), np.bool_)
    kept[order[:count]] = True
    return kept & (hits > 0)
