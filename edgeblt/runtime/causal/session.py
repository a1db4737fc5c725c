"""Decoding with a one-stage transformer over bytes: feed ids in chunks of any size, roll back, fork."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeblt.arguments import checked_ids, whole_number
from edgeblt.bundle.architectures import ByteModelConfig
from edgeblt.bundle.contract import StageName
from edgeblt.errors import EdgebltError
from edgeblt.runtime.buffers import Chunk, Take
from edgeblt.runtime.causal.state import CausalState
from edgeblt.runtime.opened_graphs import CHUNK_BYTES, OpenedGraphs, slices
from edgeblt.runtime.session import Session
from edgeblt.runtime.stage import KeptArrays, StageRunner
from edgeblt.runtime.stage_work import StageWork
from edgeblt.runtime.state.device_array import Array
from edgeblt.runtime.state.snapshot import StateSnapshot
from edgeblt.runtime.turn import Turn

FURTHER = "further_logits"


class CausalBuffers:
    """Inputs and outputs of runs on `count` ids."""

    def __init__(self, count: int, window: int, vocab_size: int, further: int) -> None:
        self.windows = np.zeros((count, window), np.int64)
        self.total_length = np.zeros(1, np.int32)
        self.logits = np.empty((count, vocab_size), np.float32)
        self.further = np.empty((count, further), np.float32)
        self.inputs: dict[str, Array] = {"windows": self.windows, "total_length": self.total_length}
        self.outputs: dict[str, Array] = {"logits": self.logits}
        if further:
            self.outputs[FURTHER] = self.further


class CausalSession(Session):
    """One sequence on one model, made by `Model.session`; used as `Session` says. Rolling back takes no time.

    Its model has one stage with keys and values of the whole text, whose first input is `windows` [T, N], each id after
    those that it is read with, and whose first output is `logits` [T, vocab]. Where it guesses further ids, logits for
    these follow as `further_logits` [T, count * vocab].
    """

    def __init__(self, config: ByteModelConfig, graphs: OpenedGraphs, threshold: float | None = None) -> None:
        self.config, self._graphs, self._threshold = config, graphs, threshold
        ((self._stage, contract),) = graphs.contracts.items()
        window = contract.inputs[0].shape[1]
        assert contract.cache is not None and isinstance(window, int)
        self._further_width = sum(int(spec.shape[1]) for spec in contract.outputs if spec.name == FURTHER)
        self.state = self._causal = CausalState(self._stage, contract.cache, window - 1)
        self._runner = StageRunner(self._stage, graphs[self._stage], self._causal.cache)
        self._kept_buffers = KeptArrays(
            lambda count: CausalBuffers(count, window, config.vocab_size, self._further_width)
        )
        self._newest_further: tuple[int, NDArray[np.float32]] = 0, np.empty((0, self._further_width), np.float32)
        self._unsettled = None
        self._at_work = None
        self._turn = Turn()

    @property
    def work(self) -> dict[StageName, StageWork]:
        """Runs, positions and seconds of the stage in this session so far, as a copy."""
        return {self._stage: replace(self._runner.work)}

    @property
    def cache_bytes(self) -> dict[StageName, int]:
        """Bytes of keys and values, which grow with the text."""
        return {self._stage: self._causal.cache.nbytes}

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

    def fork(self) -> "CausalSession":
        """An independent session in the same state."""
        with self._turn:
            self._settle()
            other = CausalSession(self.config, self._graphs, self._threshold)
            other.state.copy_from(self.state)
            return other

    def snapshot(self, earlier: StateSnapshot | None = None) -> StateSnapshot:
        text = self.saved_text
        with self._turn:
            self._settle()
            copy = self.state.snapshot(earlier)
        if text:  # the session was looked at, not used
            self._turns_of_text = self._turn.count
        return copy

    def further_logits(self) -> NDArray[np.float32]:
        """Logits [count, vocab] for the ids after the next one, as a view; none where the newest run did not reach the
        session's position, or the model does not guess them."""
        end, rows = self._newest_further
        behind = end - self.state.position
        vocab = self.config.vocab_size
        if not 0 <= behind < len(rows):
            return np.empty((0, vocab), np.float32)
        newest: NDArray[np.float32] = rows[len(rows) - 1 - behind].reshape(-1, vocab)
        return newest

    def read_ahead(self, ids: ArrayLike) -> NDArray[np.float32]:
        """Zeros, as there is no patcher."""
        checked_ids(ids, self.config.vocab_size)
        return np.zeros(self.config.vocab_size, np.float32)

    @contextmanager
    def within_patch(self) -> Iterator[Callable[[int], NDArray[np.float32]]]:
        raise EdgebltError("this model has no patches to decode within; draft with ngram or heads")
        yield

    def _settle(self) -> None:
        """Return to where the session was before an operation that an exception or Ctrl-C cut short: no run changes
        the keys and values before it."""
        self._graphs.check()
        if self._unsettled is not None:
            self._runner.release()
            self.state.rewind(self._unsettled)
            self._unsettled = None

    def _advance(self, ids: NDArray[np.int64], take: Take) -> None:
        for piece in slices(slice(0, len(ids)), CHUNK_BYTES):
            take(self._read_piece(ids[piece]))

    def _read_piece(self, ids: NDArray[np.int64]) -> Chunk:
        state, start, count = self._causal, self.state.position, len(ids)
        buffers = self._kept_buffers[count]
        state.ids.store(start, ids)
        buffers.windows[:] = state.ids.windows(start, count)
        buffers.total_length[0] = state.cache.advance(count)
        self._newest_further = 0, self._newest_further[1][:0]
        self._runner.run(buffers.inputs, buffers.outputs, count, count)
        state.position = start + count
        self._newest_further = state.position, buffers.further
        return Chunk(start, buffers.logits, np.zeros(count, np.float32), np.ones(count, np.bool_))
