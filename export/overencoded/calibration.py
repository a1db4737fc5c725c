"""An over-encoded transformer in torch for calibration, every matrix product left to the caller."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgeblt.bundle.over_encoding import OverEncoding, table_rows
from edgeblt.export.overencoded.names import EMBEDDING, HEAD, PROJECTION, TABLES
from edgeblt.overencoded.config import OverEncodedConfig
from edgeblt.quant.calibration.activations import Values, each
from edgeblt.quant.calibration.forward import Lookup, Multiply, Read, rms_norm, transformer_stack


def text_rows(tables: OverEncoding, ids: Tensor) -> Tensor:
    """Rows of the fused tables for a text's ids [T]: int64 [T, tables]."""
    windows = functional.pad(ids, (tables.context, 0)).unfold(0, tables.neighbors, 1)
    return torch.from_numpy(table_rows(tables, windows.numpy()))


def calibrate_overencoded(
    config: OverEncodedConfig, multiply: Multiply, read: Read, lookup: Lookup, texts: Sequence[Tensor]
) -> None:
    """Run each text of ids, int64 [T], through the model."""
    hidden = lookup(EMBEDDING, [text[:, None] for text in texts])
    if config.tables:
        hidden = _with_tables(config.tables, multiply, lookup, texts, hidden)
    hidden = transformer_stack("causal", config.transformer, multiply, read, hidden)
    scale = read("causal.norm")
    normed = each(lambda values: rms_norm(scale, config.transformer, values), hidden)
    for head in (HEAD, *(f"causal.further.{further}.head" for further in range(config.further_count))):
        multiply(normed, [head], lambda logits: logits)


def _with_tables(
    tables: OverEncoding, multiply: Multiply, lookup: Lookup, texts: Sequence[Tensor], embedded: Values
) -> Values:
    """The embedding with the projected rows of all n-grams."""
    columns = [
        lookup(TABLES, [rows[:, table : table + 1] for rows in map(lambda text: text_rows(tables, text), texts)])
        for table in range(tables.table_count)
    ]
    rows = Values(len(texts), lambda index: torch.cat([column.get(index) for column in columns], dim=-1))
    plain = [torch.from_numpy(np.isin(text.numpy(), tables.excluded))[:, None] for text in texts]
    own = Values(len(texts), lambda index: plain[index])

    def total(product: Tensor, embedded: Tensor, is_excluded: Tensor) -> Tensor:
        return torch.where(is_excluded, embedded, (embedded + product) / tables.divisor)

    return multiply(rows, [PROJECTION], total, embedded, own)
