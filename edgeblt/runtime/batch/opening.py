"""The stepper that fits a model and what runs it."""

from collections.abc import Callable

from edgeblt.bundle.config import ModelConfig
from edgeblt.runtime.batch.one_by_one import OneByOneStepper
from edgeblt.runtime.batch.stepper import Stepper
from edgeblt.runtime.machine.memory import available_memory
from edgeblt.runtime.opened_graphs import OpenedGraphs
from edgeblt.runtime.session import Session

MEMORY = 2 << 30  # bytes allowed where nothing says how many are free


def open_stepper(
    config: ModelConfig,
    graphs: OpenedGraphs,
    new_session: Callable[[], Session],
    threshold: float | None,
    most_sequences: int,
    memory: int | None,
) -> Stepper:
    """A stepper for at most so many sequences, whose states take at most `memory` bytes.

    memory: None is half of what is free now.

    Raises EdgebltError where a weight file was written to since it was opened, and once the graphs are closed.
    """
    graphs.refuse_changes()
    if memory is None:
        memory = (available_memory() or 2 * MEMORY) // 2
    return OneByOneStepper(new_session, most_sequences, memory)
