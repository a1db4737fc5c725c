"""Workers of a job as processes of this machine, which share the pages of mapped weights.

A worker has one task at a time. Where a worker ends before it has answered, its task goes to a new one.
"""

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import NamedTuple

from edgeblt.bundle.lost_files import explaining_lost_files
from edgeblt.corpus.job import CorpusJob, Task
from edgeblt.corpus.opening import BundleOpening
from edgeblt.corpus.workers import Finish
from edgeblt.errors import EdgebltError

MOST_TRIES = 3  # workers that may end with the same task


class _Answer(NamedTuple):
    """Message of a worker: the part of a task; or why it gives up; or neither, when it is ready for the first task."""

    part: bytes | None = None
    failure: str | None = None


def score_in_processes(
    opening: BundleOpening, job: CorpusJob, tasks: Iterator[Task], finish: Finish, count: int
) -> None:
    """Scores tasks in `count` processes, or in this one where it is 1; `finish` gets them as they are done.

    Raises EdgebltError where a worker cannot open the bundle, or where several end with the same task.
    """
    if count == 1:
        return _score_here(opening, job, tasks, finish)
    workers: list[_Worker] = []
    queue = _Queue(tasks)
    try:
        workers += [_Worker(opening, job) for _ in range(count)]
        while workers:
            ready = wait([worker.connection for worker in workers])
            for worker in [worker for worker in workers if worker.connection in ready]:
                task, part = worker.task, worker.receive()
                if worker.is_dead:
                    workers.remove(worker)
                    queue.put_back(task, worker.end())
                    workers.append(_Worker(opening, job))
                elif following := queue.next():
                    worker.send(following)  # first: it works while the part is written
                else:
                    workers.remove(worker)
                    worker.end()
                if task and part is not None:
                    finish(task.number, task.size, part)
    finally:
        for worker in workers:
            worker.kill()


def _score_here(opening: BundleOpening, job: CorpusJob, tasks: Iterator[Task], finish: Finish) -> None:
    from edgeblt.corpus.scoring import score_task

    with opening.open() as model:
        for task in tasks:
            finish(task.number, task.size, score_task(model, job, task))


class _Queue:
    """Tasks that are waiting: those of workers that ended, then all others."""

    def __init__(self, tasks: Iterator[Task]) -> None:
        self._tasks = tasks
        self._again: list[Task] = []
        self._tries: dict[int, int] = {}  # by the number of the task; -1: none, as it ended before the first

    def next(self) -> Task | None:
        return self._again.pop() if self._again else next(self._tasks, None)

    def put_back(self, task: Task | None, code: int | None) -> None:
        """Takes the task of a worker that ended by itself. Raises EdgebltError where others ended with it before."""
        number = task.number if task else -1
        self._tries[number] = self._tries.get(number, 0) + 1
        if self._tries[number] >= MOST_TRIES:
            how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
            raise EdgebltError(
                f"{MOST_TRIES} processes in turn ended by {how} {f'in task {number}' if task else 'at their start'}; "
                "free memory or use fewer processes, and run the command again, which goes on from here"
            )
        if task:
            self._again.append(task)


class _Worker:
    """A process that scores one task after the other.

    task: the task that it has, None at its start.
    is_dead: whether it was found to have ended by itself.
    """

    def __init__(self, opening: BundleOpening, job: CorpusJob) -> None:
        spawning = multiprocessing.get_context("spawn")  # ONNX Runtime's threads do not survive a fork
        self.connection, theirs = spawning.Pipe()
        self.task: Task | None = None
        self.is_dead = False
        self._process = spawning.Process(target=_work, args=(theirs, opening, job), daemon=True)
        with _interrupts_ignored():
            self._process.start()
        theirs.close()

    def receive(self) -> bytes | None:
        """The part that it has made, None where it has made none yet. Raises EdgebltError where it gives up."""
        try:
            answer: _Answer = self.connection.recv()
        except (EOFError, OSError):
            self.is_dead = True
            return None
        if answer.failure is not None:
            raise EdgebltError(answer.failure)
        return answer.part

    def send(self, task: Task) -> None:
        """Hand it a task, for which it must be waiting; that it has ended is seen when its answer is received."""
        self.task = task
        with suppress(OSError):
            self.connection.send(task)

    def end(self) -> int | None:
        """Let it end; returns its exit code."""
        self.connection.close()
        self._process.join()
        return self._process.exitcode

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self.end()


def _work(connection: Connection, opening: BundleOpening, job: CorpusJob) -> None:
    """Body of a worker, until the other end of the connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first of them ends the others
    from edgeblt.corpus.scoring import score_task

    with suppress(EOFError, BrokenPipeError, ConnectionResetError), explaining_lost_files():
        try:
            with opening.open() as model:
                connection.send(_Answer())
                while True:
                    connection.send(_Answer(score_task(model, job, connection.recv())))
        except EdgebltError as error:
            connection.send(_Answer(failure=str(error)))
        except MemoryError:
            connection.send(_Answer(failure="a worker has not enough memory; use fewer processes, and run it again"))


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Lets processes that start in the block ignore Ctrl-C from their first instruction on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
