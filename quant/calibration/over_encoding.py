"""Input of the over-encoding family in torch for calibration, its matrix product left to the caller."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgeblt.bundle.over_encoding import OverEncoding, table_rows
from edgeblt.quant.calibration.activations import Values

if TYPE_CHECKING:
    from edgeblt.quant.calibration.forward import Lookup, Multiply


def text_rows(tables: OverEncoding, ids: Tensor) -> Tensor:
    """Rows of the fused tables for a text's ids [T]: int64 [T, tables]."""
    windows = functional.pad(ids, (tables.context, 0)).unfold(0, tables.neighbors, 1)
    return torch.from_numpy(table_rows(tables, windows.numpy()))


def over_encoded(
    stage: str, tables: OverEncoding, multiply: "Multiply", lookup: "Lookup", texts: Sequence[Tensor]
) -> Values:
    """Each text's embedding with the projected rows of all n-grams: [copies, T, width].

    stage: prefix of the weights' names.
    """
    embedded = lookup(f"{stage}.embedding", [text[:, None] for text in texts])
    found = [text_rows(tables, text) for text in texts]
    columns = [
        lookup(f"{stage}.hash_tables", [rows[:, table : table + 1] for rows in found])
        for table in range(tables.table_count)
    ]
    rows = Values(len(texts), lambda index: torch.cat([column.get(index) for column in columns], dim=-1))
    plain = [torch.from_numpy(np.isin(text.numpy(), tables.excluded))[:, None] for text in texts]
    own = Values(len(texts), lambda index: plain[index])

    def total(product: Tensor, embedded: Tensor, is_excluded: Tensor) -> Tensor:
        return torch.where(is_excluded, embedded, (embedded + product) / tables.divisor)

    return multiply(rows, [f"{stage}.table_projection"], total, embedded, own)
