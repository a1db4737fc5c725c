"""Number of threads that torch computes with."""

import os

import torch

from edgeblt.runtime.machine.cores import usable_cores

_OWN_WISHES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def keep_to_usable_cores() -> None:
    """Limits torch to the cores this process may use: torch counts the machine's, whatever a container's limit.

    A number of threads that the user set in environment variables is not changed.
    """
    if not any(os.environ.get(name) for name in _OWN_WISHES) and torch.get_num_threads() > usable_cores():
        torch.set_num_threads(usable_cores())
