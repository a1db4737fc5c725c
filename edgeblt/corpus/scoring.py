"""Scoring of the rows of a task, into a part of the output."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from edgeblt.corpus.job import CorpusJob, Task
from edgeblt.errors import EdgebltError
from edgeblt.model import Model
from edgeblt.scores import Scores

TOGETHER_BYTES = 1024  # rows up to this length are scored in common steps; longer ones fill products by themselves
DIGEST = b"task"  # the metadata of a part that holds its task's digest
_FIELDS = (
    pa.field("source", pa.string(), nullable=False),
    pa.field("row", pa.int64(), nullable=False),
    pa.field("bytes", pa.int64()),
    pa.field("nats", pa.float64()),
    pa.field("bits_per_byte", pa.float64()),
    pa.field("patches", pa.int64()),
    pa.field("mean_entropy", pa.float64()),
    pa.field("problem", pa.string()),
)
_PER_BYTE = (
    pa.field("logprobs", pa.list_(pa.float32())),
    pa.field("entropies", pa.list_(pa.float32())),
    pa.field("patch_starts", pa.list_(pa.bool_())),
)


@dataclass(frozen=True)
class RowScores:
    """Scores of a row, or what is wrong with it."""

    scores: Scores | None
    problem: str | None


def output_schema(job: CorpusJob) -> pa.Schema:
    """Columns of the output."""
    return pa.schema([*_FIELDS, *(_PER_BYTE if job.per_byte else ())])


def score_task(model: Model, job: CorpusJob, task: Task) -> bytes:
    """A part of the output, as an Arrow file: a row for each row of the task, in the same order."""
    found = _scores(model, task)
    table = pa.table(_columns(job, task, found), output_schema(job).with_metadata({DIGEST: task.digest.encode()}))
    file = io.BytesIO()
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


def _scores(model: Model, task: Task) -> list[RowScores]:
    """Scores of each row; short rows in common steps, of which none fails because of another."""
    found = {index: RowScores(None, row.problem) for index, row in enumerate(task.rows) if row.data is None}
    usable = [(index, row.data) for index, row in enumerate(task.rows) if row.data is not None]
    short = [(index, data) for index, data in usable if len(data) <= TOGETHER_BYTES]
    try:
        together = model.score_batch([data for _, data in short]) if len(short) > 1 else []
    except EdgebltError:  # one of them failed: each alone says which
        together = []
    for (index, _), scores in zip(short, together, strict=False):
        found[index] = RowScores(scores, None)
    for index, data in usable:
        if index not in found:
            found[index] = _alone(model, data)
    return [found[index] for index in range(len(task.rows))]


def _alone(model: Model, data: bytes) -> RowScores:
    try:
        return RowScores(model.score(data), None)
    except EdgebltError as error:
        return RowScores(None, str(error))


def _columns(job: CorpusJob, task: Task, found: Sequence[RowScores]) -> dict[str, list[object]]:
    scored = [row.scores for row in found]
    columns: dict[str, list[object]] = {
        "source": [_as_text(job.sources[row.source].name) for row in task.rows],
        "row": [row.number for row in task.rows],
        "bytes": [None if row.data is None else len(row.data) for row in task.rows],
        "nats": [None if scores is None else _nats(scores) for scores in scored],
        "bits_per_byte": [None if scores is None or not len(scores.logprobs) else scores.bits_per_byte
                          for scores in scored],
        "patches": [None if scores is None else int(scores.patch_starts.sum()) for scores in scored],
        "mean_entropy": [None if scores is None else _mean_entropy(scores) for scores in scored],
        "problem": [row.problem for row in found],
    }  # fmt: skip
    if job.per_byte:
        for field in _PER_BYTE:
            columns[field.name] = [None if scores is None else getattr(scores, field.name) for scores in scored]
    return columns


def _as_text(path: str) -> str:
    """A path that need be no Unicode, as text."""
    return path.encode(errors="surrogateescape").decode(errors="replace")


def _nats(scores: Scores) -> float:
    return float(-scores.logprobs.sum(dtype=np.float64)) + 0.0  # an empty row's is 0, not -0


def _mean_entropy(scores: Scores) -> float | None:
    return float(scores.entropies.mean(dtype=np.float64)) if len(scores.entropies) else None
