"""Stored tensors of n-gram tables of the over-encoding family, under the names that LongCat-Flash-Lite has."""

from collections.abc import Mapping
from pathlib import Path

from edgeblt.bundle.over_encoding import OverEncoding
from edgeblt.export.checkpoints.files.checkpoint_files import of_shape, stored_tensor
from edgeblt.export.checkpoints.files.stored_weights import FusedWeight, JoinedWeight, StoredPart, StoredWeight
from edgeblt.quant.recipes.recipe import TABLES

PROJECTION = ".table_projection"  # ends the names of all tables' projections side by side
_STORED = {TABLES: "model.ngram_embeddings.embedders", PROJECTION: "model.ngram_embeddings.post_projs"}


def table_names(name: str, count: int) -> list[str]:
    """Names of the tensors that tables or projections of this canonical name consist of; empty for other weights."""
    stored = next((stored for suffix, stored in _STORED.items() if name.endswith(suffix)), None)
    return [f"{stored}.{table}.weight" for table in range(count)] if stored else []


def table_weight(
    listing: Path, stored: Mapping[str, StoredPart], tables: OverEncoding, name: str, width: int
) -> StoredWeight:
    """All tables, one after another, or all projections [width, .] side by side. Raises EdgebltError."""
    parts = [stored_tensor(listing, stored, part) for part in table_names(name, tables.table_count)]
    of_row = width // tables.table_count
    if name.endswith(PROJECTION):
        return JoinedWeight(tuple(of_shape(part, (width, of_row)) for part in parts))
    return FusedWeight(tuple(of_shape(part, (rows, of_row)) for part, rows in zip(parts, tables.rows, strict=True)))
