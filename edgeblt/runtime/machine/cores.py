"""Number of threads that help this process: cores it may run on, and processor time that its container is given."""

import functools
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from edgeblt.errors import EdgebltError, shown

_ALWAYS_ACCEPTED = 16  # threads that every machine accepts, so that it can try what a larger one does
_MOST_PER_CORE = 4  # threads per core of the machine; more are taken for a mistake


def usable_cores(root: Path = Path("/")) -> int:
    """Number of cores that this process can keep busy: its affinity, limited by its container's quota; at least 1.

    `root` is where the system's files lie.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Rounded down: a thread more than the quota has the system stop all threads for the rest of every period.
    return max(1, math.floor(min(cores, cpu_quota(root))))


def cpu_quota(root: Path = Path("/")) -> float:
    """Processor time that Linux's control groups allow this process, in cores; inf where they set no limit."""
    return min((quota for folder in _groups(root) if (quota := _quota(folder)) is not None), default=math.inf)


def check_threads(threads: int | None) -> None:
    """Raises EdgebltError for a number of threads below 1, or far beyond this machine's; warns of more than it has."""
    if threads is None:
        return
    if threads < 1:
        raise EdgebltError(f"threads is {shown(threads)}; it must be at least 1")
    cores, most = usable_cores(), most_threads()
    if threads > most:
        raise EdgebltError(f"threads is {shown(threads)}, and {_cores(cores)}; give at most {most}, best leave it out")
    if threads > cores:
        warn_of_waiting(threads, cores)


def most_threads() -> int:
    """The largest number of threads that `check_threads` accepts."""
    return max(_ALWAYS_ACCEPTED, _MOST_PER_CORE * (os.cpu_count() or 1))


@functools.cache  # once per number, however many models are opened with it
def warn_of_waiting(threads: int, cores: int) -> None:
    """Log that `threads` are more than the cores this process can use; `cache_clear()` forgets what was logged."""
    logging.getLogger("edgeblt").warning(
        "threads is %d, and %s: threads that wait for each other make it slower", threads, _cores(cores)
    )


def _cores(count: int) -> str:
    return "this process can use 1 core" if count == 1 else f"this process can use {count} cores"


def _groups(root: Path) -> Iterator[Path]:
    """Directories of the control groups that this process is in, and of their parents; not all exist.

    Both version 2 and the controller `cpu` of version 1 are searched. In a container the process's own group may be
    mounted in place of the root; then only the mount itself exists.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    mounts = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        places = [mounts / controllers, mounts / "cpu"] if controllers else [mounts, mounts / "unified"]
        for place in places:
            for group in (PurePosixPath(path), *PurePosixPath(path).parents):
                yield place / str(group).lstrip("/")


def _quota(group: Path) -> float | None:
    """Quota of a control group in cores; None where there is no limit or no such group."""
    words = _words(group / "cpu.max") or _words(group / "cpu.cfs_quota_us") + _words(group / "cpu.cfs_period_us")
    try:
        quota, period = (int(word) for word in words)
    except ValueError:  # `max`, or not there
        return None
    return quota / period if quota > 0 and period > 0 else None


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii", errors="replace").split()
    except OSError:
        return []
