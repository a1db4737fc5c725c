"""Parts of an output that is not complete: a file for each task, in a directory beside the output, for later runs."""

import json
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from edgeblt.bundle.dataclass_json import dataclass_document
from edgeblt.bundle.text_files import read_text
from edgeblt.bundle.whole_files import kept_directory, whole_file
from edgeblt.corpus.job import CorpusJob
from edgeblt.corpus.scoring import DIGEST, output_schema
from edgeblt.errors import EdgebltError

MANIFEST = "job.json"
_PART = re.compile(r"part-(\d{8,})\.arrow")
_HIDDEN = re.compile(r"\.(job\.json|part-\d{8,}\.arrow)\.partial")  # files that a killed process was writing
_GROUP_ROWS, _GROUP_BYTES = 1 << 16, 1 << 26  # rows and bytes after which a row group of the output ends


@dataclass(frozen=True)
class PartTotals:
    """Sums over the rows of an output."""

    rows: int
    bad_rows: int
    bytes: int
    nats: float
    patches: int
    entropy: float  # nats, summed over the bytes


class Parts:
    """Parts of the output `out` of a job: a directory that this process alone writes, by `open_parts`."""

    def __init__(self, out: Path, job: CorpusJob) -> None:
        self.directory = parts_directory(out)
        self._out, self._job = out, job

    def done(self, number: int, digest: str) -> bool:
        """Whether the part of a task is there. Raises EdgebltError where it is another task's."""
        found = self._digest(number)
        if found not in (None, digest):
            raise EdgebltError(
                f"{self.directory} holds rows of other texts: a source was changed since; remove it to begin again"
            )
        return found is not None

    def add(self, number: int, part: bytes) -> None:
        """Writes the part of a task. Raises EdgebltError where it cannot be written."""
        with whole_file(self._path(number), replace=True) as file:
            file.write(part)

    def assemble(self, digests: Sequence[str], replace: bool) -> PartTotals:
        """Writes the output from the parts of all tasks, and removes them. Raises EdgebltError where that fails."""
        totals = _Totals()
        schema = output_schema(self._job).with_metadata({b"edgeblt": _text(self._job).encode()})
        with (
            whole_file(self._out, replace) as file,
            pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=["source"]) as writer,
        ):
            for group in _groups(self._part(number, digest) for number, digest in enumerate(digests)):
                totals.add(group)
                writer.write_table(group.cast(schema), row_group_size=len(group))
        shutil.rmtree(self.directory, ignore_errors=True)
        return totals.result()

    def _path(self, number: int) -> Path:
        return self.directory / f"part-{number:08}.arrow"

    def _digest(self, number: int) -> str | None:
        """Digest of the task whose part is there; None where none is, or a damaged one."""
        try:
            with pa.OSFile(str(self._path(number))) as file, pa.ipc.open_file(file) as part:
                digest: bytes = (part.schema.metadata or {}).get(DIGEST, b"")
                return digest.decode(errors="replace")
        except (OSError, pa.ArrowException):
            return None

    def _part(self, number: int, digest: str) -> pa.Table:
        try:
            with pa.OSFile(str(self._path(number))) as file, pa.ipc.open_file(file) as part:
                table = part.read_all()
        except (OSError, pa.ArrowException) as error:
            raise EdgebltError(f"{self._path(number)} cannot be read ({error!s:.100}); run the command again") from None
        if (table.schema.metadata or {}).get(DIGEST) != digest.encode():
            raise EdgebltError(f"a source was changed while it was scored; remove {self.directory} and begin again")
        return table


def parts_directory(out: Path) -> Path:
    """Directory of the parts of an output."""
    return out.with_name(out.name + ".parts")


@contextmanager
def open_parts(out: Path, job: CorpusJob) -> Iterator[Parts]:
    """Yields the parts of an output, those of an earlier run of the same job among them.

    Raises EdgebltError where they are another job's, in use by another process, or cannot be written.
    """
    parts = Parts(out, job)
    with kept_directory(out, parts.directory):
        _check_directory(parts.directory, job)
        yield parts


def _check_directory(directory: Path, job: CorpusJob) -> None:
    """Writes the job into a new directory, or compares it with the one that is there."""
    names = {entry.name for entry in directory.iterdir() if not _HIDDEN.fullmatch(entry.name)}
    other = next((name for name in sorted(names) if name != MANIFEST and not _PART.fullmatch(name)), None)
    if other or (names and MANIFEST not in names):
        raise EdgebltError(f"{directory} is in the way, as it is no directory of parts; move it, or change the output")
    if not names:
        with whole_file(directory / MANIFEST) as file:
            file.write(_text(job).encode())
        return
    ours = json.loads(_text(job))
    try:
        theirs = json.loads(read_text(directory / MANIFEST))
        if not isinstance(theirs, dict):
            raise ValueError
    except ValueError:
        raise EdgebltError(f"{directory / MANIFEST} is damaged; remove {directory} to begin again") from None
    if different := [name for name in ours if ours[name] != theirs.get(name)]:
        raise EdgebltError(
            f"{directory} belongs to a job with other {different[0]}; give the same, or remove it to begin again"
        )


def _text(job: CorpusJob) -> str:
    return json.dumps(dataclass_document(job), indent=1)


def _groups(parts: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Tables of many parts each: row groups of the output, cut by the parts alone."""
    group: list[pa.Table] = []
    for part in parts:
        group.append(part.replace_schema_metadata())
        if sum(map(len, group)) >= _GROUP_ROWS or sum(table.nbytes for table in group) >= _GROUP_BYTES:
            yield pa.concat_tables(group)
            group = []
    if group:
        yield pa.concat_tables(group)


class _Totals:
    """Sums over rows, exact in any order of addition where they are of whole numbers."""

    def __init__(self) -> None:
        self._rows = self._bad = self._bytes = self._patches = 0
        self._nats: list[float] = []
        self._entropy: list[float] = []

    def add(self, table: pa.Table) -> None:
        columns: dict[str, Any] = {
            name: table[name].to_numpy() for name in ("bytes", "nats", "patches", "mean_entropy")
        }
        scored = np.asarray(table["nats"].is_valid())
        sizes = np.where(scored, columns["bytes"], 0)
        self._rows += len(table)
        self._bad += int((~scored).sum())
        self._bytes += int(sizes.sum())
        self._patches += int(np.where(scored, columns["patches"], 0).sum())
        self._nats.append(math.fsum(np.where(scored, columns["nats"], 0.0)))
        self._entropy.append(math.fsum(np.nan_to_num(columns["mean_entropy"]) * sizes))

    def result(self) -> PartTotals:
        return PartTotals(
            self._rows, self._bad, self._bytes, math.fsum(self._nats), self._patches, math.fsum(self._entropy)
        )
