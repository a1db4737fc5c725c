"""Decoding with a one-stage transformer over bytes: feed ids in chunks of any size, roll back, fork."""

import numpy as np
from numpy.typing import NDArray

from edgeblt.bundle.architectures import ByteModelConfig
from edgeblt.bundle.contract import FURTHER, StageName
from edgeblt.runtime.buffers import Chunk
from edgeblt.runtime.causal.state import CausalState, context_of
from edgeblt.runtime.one_stage.session import OneStageSession
from edgeblt.runtime.opened_graphs import OpenedGraphs
from edgeblt.runtime.stage import KeptArrays, StageRunner
from edgeblt.runtime.state.cache import KeyValueCache
from edgeblt.runtime.state.device_array import Array


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


class CausalSession(OneStageSession):
    """One sequence on one model, made by `Model.session`; used as `Session` says. Rolling back takes no time.

    Its model has one stage with keys and values of the whole text, whose first input is `windows` [T, N], each id after
    those that it is read with, and whose first output is `logits` [T, vocab]. Where it guesses further ids, logits for
    these follow as `further_logits` [T, count * vocab].
    """

    _runner: StageRunner

    def __init__(self, config: ByteModelConfig, graphs: OpenedGraphs, threshold: float | None = None) -> None:
        super().__init__(config, graphs, threshold)
        contract = graphs.contracts[self._stage]
        assert contract.cache is not None
        context = context_of(contract)
        self._further_width = sum(int(spec.shape[1]) for spec in contract.outputs if spec.name == FURTHER)
        self.state = self._causal = CausalState({self._stage: KeyValueCache(contract.cache, 0)}, context)
        self._runner = StageRunner(self._stage, graphs[self._stage], self._causal.cache)
        self._kept_buffers = KeptArrays(
            lambda count: CausalBuffers(count, context + 1, config.vocab_size, self._further_width)
        )
        self._newest_further: tuple[int, NDArray[np.float32]] = 0, np.empty((0, self._further_width), np.float32)

    @property
    def cache_bytes(self) -> dict[StageName, int]:
        """Bytes of keys and values, which grow with the text."""
        return {self._stage: self._causal.cache.nbytes}

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
