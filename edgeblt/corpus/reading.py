"""Rows of a corpus, read in streams: of a source there is never more in memory than a row, or a few pages of Parquet.

Each row of a source is a `CorpusRow`, be its text usable or not, so that none is lost.
"""

import json
import os
import stat
from collections.abc import Iterator
from functools import partial
from typing import Any, BinaryIO

from edgeblt.bundle import system_calls
from edgeblt.corpus.job import LARGEST_ROW, CorpusJob, CorpusRow, Source, Task
from edgeblt.corpus.parquet_source import parquet_values
from edgeblt.errors import EdgebltError, shown

TASK_BYTES = 1 << 15  # bytes of text after which a task ends: a second or two of a small model's work
TASK_ROWS = 512  # most rows of a task
_FLAGS = os.O_RDONLY | system_calls.NOT_BLOCKING | system_calls.NOT_INHERITED
_TOO_LONG = f"longer than {LARGEST_ROW >> 20} MB"


def read_tasks(job: CorpusJob) -> Iterator[Task]:
    """The tasks of a job, in order. Raises EdgebltError where a source cannot be read, or lacks the column."""
    rows, size, number = list[CorpusRow](), 0, 0
    for row in _rows(job):
        rows.append(row)
        size += len(row.data or b"")
        if size >= TASK_BYTES or len(rows) >= TASK_ROWS:
            yield Task(number, tuple(rows))
            rows, size, number = [], 0, number + 1
    if rows:
        yield Task(number, tuple(rows))


def _rows(job: CorpusJob) -> Iterator[CorpusRow]:
    for index, source in enumerate(job.sources):
        with _opened(source) as file:
            if source.format == "text":
                pieces = iter(partial(file.read, job.row_bytes), b"")
                yield from (CorpusRow(index, number, data) for number, data in enumerate(pieces))
                continue
            values = _json_values(file, job.column) if source.format == "jsonl" else _parquet(file, source, job.column)
            for number, value in values:
                data, problem = (None, value.problem) if isinstance(value, _Bad) else _text(value, job.column)
                yield CorpusRow(index, number, data, problem)


def _opened(source: Source) -> BinaryIO:
    try:
        descriptor = os.open(source.path, _FLAGS)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise EdgebltError(f"{source.name} is no regular file any more; give the file that it was")
        return open(descriptor, "rb")
    except OSError as error:
        raise EdgebltError(f"{source.name} cannot be read ({error.strerror}); give files of texts") from None


class _Bad:
    """A value that could not be read, and why."""

    def __init__(self, problem: str) -> None:
        self.problem = problem


def _text(value: Any, column: str) -> tuple[bytes | None, str | None]:
    """The bytes of a value, or what is wrong with it."""
    if value is None:
        return None, f"{column} is null"
    if isinstance(value, str):
        try:
            value = value.encode()
        except UnicodeEncodeError:
            return None, f"{column} holds half a surrogate pair, which is no text"
    if not isinstance(value, bytes):
        return None, f"{column} is {shown(value)}, no text"
    return (None, f"{column} is {_TOO_LONG}") if len(value) > LARGEST_ROW else (value, None)


def _json_values(file: BinaryIO, column: str) -> Iterator[tuple[int, Any]]:
    """Number and value of each line that is not blank; lines are numbered from 0, blank ones too."""
    number = -1
    while line := file.readline(LARGEST_ROW + 1):
        number += 1
        if len(line) > LARGEST_ROW and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = file.readline(LARGEST_ROW)
            yield number, _Bad(f"the line is {_TOO_LONG}")
        elif line.strip():
            yield number, _json_value(line, column)


def _json_value(line: bytes, column: str) -> Any:
    try:
        document = json.loads(line.decode())
    except UnicodeDecodeError:
        return _Bad("the line is not UTF-8")
    except (ValueError, RecursionError):
        return _Bad("the line is no JSON")
    if not isinstance(document, dict):
        return _Bad(f"the line is {shown(document)}, no JSON object")
    return document[column] if column in document else _Bad(f"the line has no {column}")


def _parquet(file: BinaryIO, source: Source, column: str) -> Iterator[tuple[int, Any]]:
    return enumerate(parquet_values(file, source.name, column))
