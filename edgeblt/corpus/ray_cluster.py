"""The same job on a Ray cluster, with Ray Data: tasks are read on the driver's machine and scored by actors anywhere.

Only tasks, bundles and parts travel, so only the bundle and the package must be there, not the sources. Ray starts
actors that ended anew, and their tasks again; parts are the same whoever makes them.
"""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data.block import BlockMetadata

from edgeblt.corpus.job import CorpusJob, CorpusRow, Task
from edgeblt.corpus.opening import BundleOpening
from edgeblt.corpus.reading import TASK_BYTES, read_tasks
from edgeblt.corpus.scoring import score_task
from edgeblt.corpus.shipping import ShippedBundle, ship_bundle
from edgeblt.corpus.workers import Finish, Workers
from edgeblt.errors import EdgebltError

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray must tell nobody
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # lines of its C++ beside our progress
LOCAL = "local"

_ROW = pa.struct(
    [("source", pa.int64()), ("number", pa.int64()), ("data", pa.large_binary()), ("problem", pa.string())]
)
_TASKS = pa.schema([("number", pa.int64()), ("rows", pa.list_(_ROW)), ("failure", pa.string())])

Columns = dict[str, Any]


class TaskSource(ray.data.Datasource):  # type: ignore[misc]  # whose own types are of no help
    """Tasks of a job that are not done, as a data set with a row for each."""

    def __init__(self, job: CorpusJob, done: frozenset[int]) -> None:
        super().__init__()
        self._job, self._done = job, done

    @property
    def supports_distributed_reads(self) -> bool:
        """False: the sources are on the driver's machine."""
        return False

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of the sources."""
        return sum(source.size for source in self._job.sources)

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ray.data.ReadTask]:
        """One, which gives a block for each task."""
        job, done = self._job, self._done
        metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ray.data.ReadTask(lambda: _blocks(job, done), metadata)]


def _blocks(job: CorpusJob, done: frozenset[int]) -> Iterable[pa.Table]:
    try:
        for task in read_tasks(job):
            if task.number not in done:
                rows = [row._asdict() for row in task.rows]
                yield pa.Table.from_pylist([{"number": task.number, "rows": rows, "failure": None}], _TASKS)
    except EdgebltError as error:
        yield pa.Table.from_pylist([{"number": -1, "rows": [], "failure": str(error)}], _TASKS)


class TaskScorer:
    """An actor that scores tasks with a model of its own; what fails travels as a sentence."""

    def __init__(self, opening: BundleOpening, shipped: ShippedBundle | None, job: CorpusJob) -> None:
        self._job, self._failure = job, ""
        try:
            self._model = (shipped.opening_here(opening) if shipped else opening).open()
        except EdgebltError as error:
            self._failure = str(error)

    def __call__(self, tasks: pa.Table) -> Columns:
        found = [self._scored(**task) for task in tasks.to_pylist()]
        numbers, sizes, parts, failures = zip(*found, strict=True)
        return {
            "number": np.array(numbers), "size": np.array(sizes), "part": np.array(parts, object),
            "failure": np.array(failures, object),
        }  # fmt: skip

    def _scored(self, number: int, rows: list[Columns], failure: str | None) -> tuple[int, int, bytes, str]:
        """Number, size and part of a task, or why there is none."""
        if failure or self._failure:
            return -1, 0, b"", failure or self._failure
        task = Task(number, tuple(CorpusRow(**row) for row in rows))
        try:
            return task.number, task.size, score_task(self._model, self._job, task), ""
        except EdgebltError as error:
            return -1, 0, b"", str(error)


def score_on_ray(
    opening: BundleOpening, job: CorpusJob, done: frozenset[int], finish: Finish, workers: Workers
) -> None:
    """Scores the tasks that are not done; `finish` gets them as they are done.

    Raises EdgebltError where there is no cluster at the address, where a worker cannot open the bundle, and where the
    cluster ends.
    """
    assert workers.ray is not None
    with _connected(workers):
        try:
            shipped = None if workers.ray == LOCAL or workers.shared_bundle else ship_bundle(opening)
            for row in _parts(opening, shipped, job, done, workers).iter_rows():
                if row["failure"]:
                    raise EdgebltError(row["failure"])
                finish(row["number"], row["size"], row["part"])
        except ray.exceptions.RayError as error:
            raise EdgebltError(f"Ray ended the job ({_first_line(error)}); run the command again: it goes on") from None


def _parts(
    opening: BundleOpening, shipped: ShippedBundle | None, job: CorpusJob, done: frozenset[int], workers: Workers
) -> ray.data.Dataset:
    """A data set of parts, computed as it is read."""
    cores = int(ray.cluster_resources().get("CPU", 1))
    count = workers.processes or max(cores // workers.threads, 1)
    tasks = ray.data.read_datasource(TaskSource(job, done), num_cpus=0, override_num_blocks=1)
    return tasks.map_batches(
        TaskScorer,
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=2),
        fn_constructor_args=(opening, shipped, job),
        num_cpus=workers.threads,
    )


@contextmanager
def _connected(workers: Workers) -> Iterator[None]:
    """Connects to the cluster, or starts one of this machine; a connection that is there already is used, and stays."""
    own, context = not ray.is_initialized(), ray.data.DataContext.get_current()
    before = replace(context)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        if own:
            _connect(workers)
        context.target_max_block_size = TASK_BYTES  # blocks of about a task, or few workers would have all of them
        context.enable_progress_bars = False
        yield
    finally:
        context.target_max_block_size = before.target_max_block_size
        context.enable_progress_bars = before.enable_progress_bars
        if own:
            ray.shutdown()


def _connect(workers: Workers) -> None:
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if workers.ray == LOCAL:
        options |= {"num_cpus": workers.count_here * workers.threads, "include_dashboard": False}
    try:
        ray.init(address=workers.ray, **options)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        reason = _first_line(error)
        raise EdgebltError(f"there is no Ray cluster at {workers.ray} ({reason}); start one, or use local") from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
