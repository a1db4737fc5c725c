"""Scores of a corpus: `edgeblt score` as a function."""

import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeblt.arguments import as_path
from edgeblt.bundle.manifest import Bundle, open_bundle
from edgeblt.bundle.placement import describe_placement
from edgeblt.bundle.whole_files import check_writable
from edgeblt.corpus.job import ROW_BYTES, CorpusJob, Task, checked_row_bytes, find_sources
from edgeblt.corpus.opening import BundleOpening
from edgeblt.corpus.parts import Parts, PartTotals, open_parts
from edgeblt.corpus.processes import score_in_processes
from edgeblt.corpus.reading import read_tasks
from edgeblt.corpus.workers import Workers
from edgeblt.errors import EdgebltError
from edgeblt.progress import BYTES, progress
from edgeblt.runtime.opening import checked_threshold, place_stages

_MOST_SHOWN = 5  # bad rows that are named one by one


@dataclass(frozen=True)
class CorpusScores:
    """Scores of a corpus, and where those of its rows are.

    rows, bad_rows: rows of the output, and those among them without scores, whose column `problem` says why.
    bytes: of all texts that were scored.
    bits_per_byte: mean over bytes; nan where there are none.
    mean_entropy: nats of the patcher, mean over bytes.
    patches, bytes_per_patch: patches that start in the texts, and the mean length of a patch in bytes.
    resumed_bytes: bytes whose scores were there already, of an earlier run.
    seconds, bytes_per_s: time of this run, opening included, and rate of what it scored itself.
    """

    out: str
    rows: int
    bad_rows: int
    bytes: int
    bits_per_byte: float
    mean_entropy: float
    patches: int
    bytes_per_patch: float
    resumed_bytes: int
    seconds: float
    bytes_per_s: float
    processes: int
    bundle: str
    bundle_id: str
    provider: str


def score_corpus(
    bundle: str | Path,
    files: Sequence[str | Path],
    out: str | Path,
    column: str = "text",
    format: str | None = None,
    row_bytes: int = ROW_BYTES,
    per_byte: bool = False,
    workers: Workers | None = None,
    provider: str | None = None,
    threshold: float | None = None,
    replace: bool = False,
) -> CorpusScores:
    """Score every row of a corpus into a Parquet file, going on with what an earlier run of the same job left.

    files: text, JSON lines or Parquet, by their suffixes, or all of `format`.
    out: the Parquet file to write; with `replace` one that is there is replaced when the new one is complete.
    column: the column, or field, that holds the texts.
    row_bytes: length of the rows that text files are cut into; rows of the others are scored whole.
    per_byte: whether log-probability, entropy and patch start of each byte are written, too.

    Raises EdgebltError for arguments out of range, a source that cannot be read, a bundle that cannot be opened, and
    parts of another job. Parts of what is done stay, for the next run.
    """
    started, out, workers = time.perf_counter(), as_path("out", out), workers or Workers()
    workers.check()
    opened = open_bundle(as_path("bundle", bundle))
    job = CorpusJob(
        find_sources(files, format),
        column,
        checked_row_bytes(row_bytes),
        per_byte,
        opened.id,
        describe_placement(place_stages(opened, provider)),
        checked_threshold(opened, threshold),
    )
    count = workers.count_here
    _check_output(out, job, replace)
    opening = BundleOpening(os.path.abspath(opened.path), opened.id, provider, workers.threads, threshold)
    with open_parts(out, job) as parts:
        plan = _Plan.scanned(job, parts)
        _run(opening, job, plan, parts, workers, count)
        totals = parts.assemble(plan.digests, replace)
    return _result(opened, job, out, totals, plan, count, time.perf_counter() - started)


@dataclass(frozen=True)
class _Plan:
    """All tasks of a job, by their digests, and which of them are done."""

    digests: tuple[str, ...]
    done: frozenset[int]
    size: int  # bytes of all texts
    done_size: int  # bytes of those that are done

    @classmethod
    def scanned(cls, job: CorpusJob, parts: Parts) -> "_Plan":
        """Reads the whole corpus once, and names its bad rows. Raises EdgebltError where a source cannot be read."""
        digests, done, size, done_size, bad = list[str](), set[int](), 0, 0, _BadRows(job)
        for task in read_tasks(job):
            digests.append(task.digest)
            size += task.size
            bad.show(task)
            if parts.done(task.number, task.digest):
                done.add(task.number)
                done_size += task.size
        bad.show_rest()
        return cls(tuple(digests), frozenset(done), size, done_size)


class _BadRows:
    """Names the first bad rows on stderr, and counts the others."""

    def __init__(self, job: CorpusJob) -> None:
        self._job, self._count = job, 0

    def show(self, task: Task) -> None:
        for row in task.rows:
            if row.problem:
                self._count += 1
                if self._count <= _MOST_SHOWN:
                    _say(f"{self._job.sources[row.source].name}, row {row.number}: {row.problem}")

    def show_rest(self) -> None:
        if self._count > _MOST_SHOWN:
            _say(f"{self._count - _MOST_SHOWN:,} more rows cannot be scored; column problem of the output says why")


def _say(sentence: str) -> None:
    from edgeblt.printable import printable

    print(f"edgeblt: {printable(sentence)}", file=sys.stderr, flush=True)


def _check_output(out: Path, job: CorpusJob, replace: bool) -> None:
    """Raises EdgebltError where the output cannot be written, or would replace a source."""
    if any(os.path.realpath(out) == os.path.realpath(source.path) for source in job.sources):
        raise EdgebltError(f"{out} is one of the files to score; choose another name for the output")
    if not replace and os.path.lexists(out):
        raise EdgebltError(f"{out} exists already; replace it with --force, or choose another name")
    check_writable(out, replace)


def _run(opening: BundleOpening, job: CorpusJob, plan: _Plan, parts: Parts, workers: Workers, processes: int) -> None:
    """Scores all tasks that are not done."""
    with progress("scoring", plan.size, BYTES) as advance:
        advance(plan.done_size)

        def finish(number: int, size: int, part: bytes) -> None:
            parts.add(number, part)
            advance(size)

        if len(plan.done) == len(plan.digests):
            return
        if workers.ray is not None:
            from edgeblt.corpus.ray_cluster import score_on_ray

            return score_on_ray(opening, job, plan.done, finish, workers)
        waiting = (task for task in read_tasks(job) if task.number not in plan.done)
        count = min(processes, len(plan.digests) - len(plan.done))
        score_in_processes(opening, job, waiting, finish, count)


def _result(
    bundle: Bundle, job: CorpusJob, out: Path, totals: PartTotals, plan: _Plan, processes: int, seconds: float
) -> CorpusScores:
    size = totals.bytes
    return CorpusScores(
        str(out),
        totals.rows,
        totals.bad_rows,
        size,
        totals.nats / math.log(2) / size if size else math.nan,
        totals.entropy / size if size else math.nan,
        totals.patches,
        size / totals.patches if totals.patches else math.nan,
        plan.done_size,
        seconds,
        (plan.size - plan.done_size) / seconds,
        processes,
        str(bundle.path),
        job.bundle_id,
        job.provider,
    )
