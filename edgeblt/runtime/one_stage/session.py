"""A session on a model of one stage, whose state can return to any earlier position at once."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeblt.arguments import checked_ids, whole_number
from edgeblt.bundle.architectures import ByteModelConfig
from edgeblt.bundle.contract import StageName
from edgeblt.errors import EdgebltError
from edgeblt.runtime.buffers import Chunk, Take
from edgeblt.runtime.opened_graphs import CHUNK_BYTES, OpenedGraphs, slices
from edgeblt.runtime.session import Session
from edgeblt.runtime.stage_work import StageWork
from edgeblt.runtime.turn import Turn


class Runner(Protocol):
    """Runs the stage's graph."""

    work: StageWork

    def release(self) -> None:
        """Let go of all bindings, and so of the graph."""
        ...


class OneStageSession(Session):
    """One sequence on one model, made by `Model.session`; used as `Session` says.

    No run changes what the state was before it, so an operation that was cut short is undone by rewinding. A subclass
    sets `state` and `_runner`, and reads ids.
    """

    _runner: Runner

    def __init__(self, config: ByteModelConfig, graphs: OpenedGraphs, threshold: float | None = None) -> None:
        self.config, self._graphs, self._threshold = config, graphs, threshold
        (self._stage,) = graphs.contracts
        self._unsettled = None
        self._at_work = None
        self._turn = Turn()

    @abstractmethod
    def _read_piece(self, ids: NDArray[np.int64]) -> Chunk:
        """Results of at most CHUNK_BYTES ids, which the state has read afterwards."""

    @property
    def work(self) -> dict[StageName, StageWork]:
        """Runs, positions and seconds of the stage in this session so far, as a copy."""
        return {self._stage: replace(self._runner.work)}

    def rollback(self, position: int) -> None:
        """Forget everything after the first ids.

        position: how many ids to keep, from 0 to the session's own position.

        Raises EdgebltError for another position.
        """
        position = whole_number("position", position, None)
        if not 0 <= position <= self.position:
            raise EdgebltError(f"cannot roll back to position {position}; this session is at {self.position}")
        with self._turn:
            self._settle()
            self._unsettled = position
            self.state.rewind(position)
            self._unsettled = None

    def fork(self) -> Self:
        """An independent session in the same state."""
        with self._turn:
            self._settle()
            other = type(self)(self.config, self._graphs, self._threshold)
            other.state.copy_from(self.state)
            return other

    def read_ahead(self, ids: ArrayLike) -> NDArray[np.float32]:
        """Zeros, as there is no patcher."""
        checked_ids(ids, self.config.vocab_size)
        return np.zeros(self.config.vocab_size, np.float32)

    @contextmanager
    def within_patch(self) -> Iterator[Callable[[int], NDArray[np.float32]]]:
        drafters = "ngram or heads" if self.config.further_count else "ngram"
        raise EdgebltError(f"this model has no patches to decode within; draft with {drafters}")
        yield

    def _settle(self) -> None:
        """Return to where the session was before an operation that an exception or Ctrl-C cut short."""
        self._graphs.check()
        if self._unsettled is not None:
            self._runner.release()
            self.state.rewind(self._unsettled)
            self._unsettled = None

    def _make_copyable(self) -> None:
        pass

    def _advance(self, ids: NDArray[np.int64], take: Take) -> None:
        for piece in slices(slice(0, len(ids)), CHUNK_BYTES):
            take(self._read_piece(ids[piece]))
