"""Where a job is computed."""

from dataclasses import dataclass

from edgeblt.arguments import whole_number
from edgeblt.runtime.machine.cores import check_threads, usable_cores


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

    @property
    def count_here(self) -> int:
        """Number of processes on this machine. Raises EdgebltError for numbers out of range."""
        check_threads(whole_number("threads", self.threads, 1))
        if self.processes is not None:
            return whole_number("processes", self.processes, 1)
        return max(usable_cores() // self.threads, 1)
