"""Values of one column of a Parquet file, in streams."""

from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from edgeblt.errors import EdgebltError, shown

LARGEST_ROW_GROUP = 1 << 30  # bytes of the column in a row group, as the file declares them
_ROWS = 16  # rows read at once, each of which may be long
_BUFFER = 1 << 20
_LIMIT = 1 << 26  # bytes of a name, and entries of a list, in the file's footer


def parquet_values(file: BinaryIO, name: str, column: str) -> Iterator[bytes | None]:
    """Each value of a column: bytes, or None where it is null.

    Raises EdgebltError where the file is damaged, lacks the column, or has no texts in it.
    """
    try:
        with pq.ParquetFile(
            file,
            buffer_size=_BUFFER,
            pre_buffer=False,
            thrift_string_size_limit=_LIMIT,
            thrift_container_size_limit=_LIMIT,
        ) as opened:
            _check(opened, name, column)
            for batch in opened.iter_batches(batch_size=_ROWS, columns=[column], use_threads=False):
                yield from _as_bytes(batch.column(0)).to_pylist()
    except EdgebltError:
        raise
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise EdgebltError(f"{name} cannot be read as Parquet ({reason}); write it again") from None


def _as_bytes(values: pa.Array) -> pa.Array:
    """The same values as bytes; a string that is no UTF-8, which a damaged file may hold, is scored as it is."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    return values.cast(pa.large_binary())


def _check(opened: pq.ParquetFile, name: str, column: str) -> None:
    schema = opened.schema_arrow
    found = schema.get_all_field_indices(column)
    if len(found) != 1:
        there = ", ".join(schema.names[:8]) or "none"
        raise EdgebltError(f"{name} has {len(found)} columns {shown(column)}; name another with --column: {there:.200}")
    kind = schema.field(found[0]).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not any(check(kind) for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary,
                                         pa.types.is_large_binary, pa.types.is_null)):  # fmt: skip
        raise EdgebltError(f"{name}: column {shown(column)} is of type {kind!s:.60}; name one of text with --column")
    for group in range(opened.metadata.num_row_groups):
        chunks = opened.metadata.row_group(group)
        for index in range(chunks.num_columns):
            chunk = chunks.column(index)
            if chunk.path_in_schema == column and not 0 <= chunk.total_uncompressed_size <= LARGEST_ROW_GROUP:
                raise EdgebltError(
                    f"{name}: row group {group} declares {chunk.total_uncompressed_size:,} bytes of {shown(column)};"
                    f" write it again with row groups of at most {LARGEST_ROW_GROUP >> 20:,} MB"
                )
