"""The stepper that fits a model and what runs it."""

import functools
import logging
from collections.abc import Callable

import numpy as np

from edgeblt.bundle.architectures import ByteModelConfig, architecture
from edgeblt.bundle.contract import BATCH_INPUTS
from edgeblt.errors import EdgebltError
from edgeblt.ids import BOS, OFFSET
from edgeblt.runtime import native
from edgeblt.runtime.batch.one_by_one import OneByOneStepper
from edgeblt.runtime.batch.stepper import StepPart, Stepper
from edgeblt.runtime.buffers import Chunk
from edgeblt.runtime.machine.memory import available_memory
from edgeblt.runtime.opened_graphs import OpenedGraphs
from edgeblt.runtime.session import Session

_MEMORY = 2 << 30  # bytes allowed where nothing says how many are free
_TRIAL_MEMORY = 1 << 30
_TRIAL_TEXTS: tuple[tuple[int, ...], ...] = ((BOS, ord("a") + OFFSET, ord(" ") + OFFSET), (BOS, ord("é") + OFFSET))
_TOLERANCE = 1e-3  # share of the largest logit


def open_stepper(
    config: ByteModelConfig,
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
        memory = (available_memory() or 2 * _MEMORY) // 2
    stepper = architecture(config.architecture).stepper_class
    if stepper and graphs.is_batchable is None:
        trial = len(_TRIAL_TEXTS), _TRIAL_MEMORY
        reason = _obstacle(graphs) or _failure(stepper(config, graphs, threshold, *trial), new_session)
        graphs.is_batchable = reason is None
        if reason:
            _warn_once(reason)
    if stepper and graphs.is_batchable:
        return stepper(config, graphs, threshold, most_sequences, memory)
    return OneByOneStepper(new_session, most_sequences, memory)


def _obstacle(graphs: OpenedGraphs) -> str | None:
    """Why no run can take rows of several sequences; None where nothing is known to hinder it."""
    names = {spec.name for spec in BATCH_INPUTS}
    if any(memory is not None for memory in graphs.memories.values()):
        return "a stage runs on a GPU"
    if not all(graphs[stage].input_names & names for stage in graphs.contracts):
        return "a stage was exported for a GPU, or by an earlier version"
    return None if native.library_path() else f"the native library is {native.describe()}"


def _failure(stepper: Stepper, new_session: Callable[[], Session]) -> str | None:
    """The same from a trial on the very graphs: two texts in one step must get what each gets alone."""
    parts = []
    for text in _TRIAL_TEXTS:
        sequence = stepper.open(len(text))
        if sequence is None:
            return f"their states take more than {_TRIAL_MEMORY >> 20} MiB"
        parts.append(StepPart(sequence, np.array(text, np.int64)))
    for text, found in zip(_TRIAL_TEXTS, stepper.run(parts), strict=True):
        if isinstance(found, EdgebltError):
            return str(found)
        (alone,) = new_session().run(text)
        if not _agree(found, alone):
            return "these graphs compute rows of several texts wrongly; prepare or export the bundle again"
    return None


def _agree(found: Chunk, alone: Chunk) -> bool:
    bound = _TOLERANCE * float(np.abs(alone.logits).max(initial=0))
    is_close = np.isclose(found.logits, alone.logits, rtol=0, atol=bound, equal_nan=True).all()
    return bool(is_close) and bool((found.patch_starts == alone.patch_starts).all())


@functools.cache
def _warn_once(reason: str) -> None:
    logging.getLogger("edgeblt").warning("texts in a batch run one after the other: %s", reason)
