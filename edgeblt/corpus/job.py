"""A job: all that decides the rows of its output."""

import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from edgeblt.arguments import whole_number
from edgeblt.errors import EdgebltError, shown

SourceFormat = Literal["text", "jsonl", "parquet"]
FORMATS: tuple[SourceFormat, ...] = get_args(SourceFormat)
LARGEST_ROW = 1 << 23  # bytes of a row's text, and of a line of JSON
ROW_BYTES = 4096
_SUFFIXES: dict[str, SourceFormat] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}


@dataclass(frozen=True)
class Source:
    """One file of a corpus; `name` is its path as it was given, `path` the absolute one, and `size` is in bytes."""

    name: str
    path: str
    format: SourceFormat
    size: int


@dataclass(frozen=True)
class CorpusJob:
    """All that decides the rows of a job's output.

    sources: files, in the order of their rows.
    column: name of the column, or field, that holds the text in Parquet and JSON lines.
    row_bytes: length of the rows that text files are cut into.
    per_byte: whether the output holds the scores of each byte.
    bundle_id, provider, threshold: what scores them; `threshold` is None for the bundle's own.
    """

    sources: tuple[Source, ...]
    column: str
    row_bytes: int
    per_byte: bool
    bundle_id: str
    provider: str
    threshold: float | None


class CorpusRow(NamedTuple):
    """A row of a source: its text, or None and what is wrong with it."""

    source: int  # index in the job's sources
    number: int  # in its source, from 0
    data: bytes | None
    problem: str | None = None


@dataclass(frozen=True)
class Task:
    """Rows that are scored together by one worker; tasks are cut by the sources alone."""

    number: int
    rows: tuple[CorpusRow, ...]

    @property
    def size(self) -> int:
        """Bytes of text in its rows."""
        return sum(len(row.data or b"") for row in self.rows)

    @property
    def digest(self) -> str:
        """Hash of its rows, by which a later run knows that it is the same task."""
        said = hashlib.sha256()
        for source, number, data, problem in self.rows:
            said.update(f"{source} {number} {problem} {-1 if data is None else len(data)}\n".encode())
            said.update(data or b"")
        return said.hexdigest()[:32]


def find_sources(files: Sequence[str | Path], kind: str | None) -> tuple[Source, ...]:
    """Sources of a corpus; `kind` is the format of all, None lets suffixes decide, and what has no known one is text.

    Raises EdgebltError where there are none, for an unknown format, and for a path that is no regular file.
    """
    if not files:
        raise EdgebltError("there are no files to score; give at least one")
    if kind is not None and kind not in FORMATS:
        raise EdgebltError(f"the format is {shown(kind)}; it must be one of {', '.join(FORMATS)}")
    return tuple(_source(str(file), kind) for file in files)


def _source(name: str, kind: str | None) -> Source:
    try:
        found = os.stat(name)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise EdgebltError(f"{shown(name)} cannot be read ({reason}); give files of texts") from None
    if not stat.S_ISREG(found.st_mode):
        raise EdgebltError(f"{name} is no regular file; a corpus is read twice, so write it to a file first")
    suffix = _SUFFIXES.get(os.path.splitext(name)[1].lower(), "text")
    format = next(known for known in FORMATS if known == (kind or suffix))
    return Source(name, os.path.abspath(name), format, found.st_size)


def checked_row_bytes(count: int) -> int:
    """Length of the rows that text files are cut into. Raises EdgebltError for one out of range."""
    if whole_number("row_bytes", count, 1) > LARGEST_ROW:
        raise EdgebltError(f"row_bytes is {count:,}; it must be at most {LARGEST_ROW:,}")
    return count
