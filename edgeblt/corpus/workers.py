"""Where a job is computed."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

from edgeblt.arguments import whole_number
from edgeblt.errors import EdgebltError, shown
from edgeblt.installing import install_hint
from edgeblt.runtime.machine.cores import check_threads, usable_cores

MOST_PROCESSES = 1024

Finish = Callable[[int, int, bytes], None]
"""Takes the number of a task, the bytes of text in it, and its part of the output."""


@dataclass(frozen=True)
class Workers:
    """Where a job is computed.

    processes: number of workers; None, the default, is one for every `threads` cores.
    threads: threads of each.
    ray: address of a Ray cluster, or `local`; None, the default, is processes of this machine.
    shared_bundle: whether the cluster's machines all find the bundle at its path, so that none needs a copy.
    """

    processes: int | None = None
    threads: int = 1
    ray: str | None = None
    shared_bundle: bool = False

    def check(self) -> None:
        """Raises EdgebltError for numbers out of range, and where Ray is wanted and not installed."""
        _ = self.count_here
        if self.ray is not None and not has_ray():
            raise EdgebltError(f"--ray needs Ray Data; install it with: {install_hint('ray')}")
        if self.ray is None and self.shared_bundle:
            raise EdgebltError("--shared-bundle is for machines of a Ray cluster; name one with --ray, or leave it out")

    @property
    def count_here(self) -> int:
        """Number of processes on this machine. Raises EdgebltError for numbers out of range."""
        check_threads(whole_number("threads", self.threads, 1))
        if self.processes is not None:
            if whole_number("processes", self.processes, 1) > MOST_PROCESSES:
                raise EdgebltError(f"processes is {shown(self.processes)}; it must be at most {MOST_PROCESSES:,}")
            return self.processes
        return max(usable_cores() // self.threads, 1)


def has_ray() -> bool:
    """Whether Ray is installed."""
    return importlib.util.find_spec("ray") is not None
