"""Decoding with a recurrent model: feed ids in chunks of any size, roll back, fork.

Ids are those of every architecture: byte b is id b + 4. The model has no BOS of its own; a sequence begins with it all
the same, and its logits say that any byte is as likely as another.
"""

import numpy as np
from numpy.typing import NDArray

from edgeblt.bundle.architectures import ByteModelConfig
from edgeblt.bundle.contract import StageName
from edgeblt.errors import EdgebltError
from edgeblt.ids import BOS, OFFSET
from edgeblt.runtime.buffers import Chunk
from edgeblt.runtime.one_stage.session import OneStageSession
from edgeblt.runtime.opened_graphs import CHUNK_BYTES, OpenedGraphs
from edgeblt.runtime.recurrent.runner import StateRunner
from edgeblt.runtime.recurrent.state import NOWHERE, RecurrentState, States, state_shapes

BYTE_VALUES = 256
NEVER = np.float32(-1e4)  # logit of the ids that are no bytes; finite, so that distributions can be compared


class RecurrentSession(OneStageSession):
    """One sequence on one model, made by `Model.session`; used as `Session` says.

    Its model has one stage, whose first input is `bytes` [T], whose first output `logits` [T, 256], and whose others
    are states `past_..` and `present_..`, zeros before the first byte: of fixed sizes, or of one slot each. Inputs
    after these are empty.

    Rolling back takes no time itself: with the next id, what follows the nearest kept state is read again, at most 64
    ids where bytes came one by one, at most a chunk and 64 after longer reading, and further back from the beginning.
    """

    _runner: StateRunner

    def __init__(self, config: ByteModelConfig, graphs: OpenedGraphs, threshold: float | None = None) -> None:
        super().__init__(config, graphs, threshold)
        contract = graphs.contracts[self._stage]
        shapes = state_shapes(contract)
        self.state = self._recurrent = RecurrentState(States.zeros(shapes), States.zeros(shapes))
        self._runner = StateRunner(contract, graphs[self._stage])
        self._one = np.empty(1, np.int64), np.empty((1, BYTE_VALUES), np.float32)

    @property
    def cache_bytes(self) -> dict[StageName, int]:
        """Bytes of the states that are kept, which do not grow."""
        return {self._stage: self._recurrent.nbytes}

    def _read_piece(self, ids: NDArray[np.int64]) -> Chunk:
        state, start, count = self._recurrent, self.state.position, len(ids)
        check_bytes(ids, start)
        while start - state.now.position > CHUNK_BYTES:
            self._run(state.now.position + CHUNK_BYTES)
        state.ids.store(start, ids)
        found = self._run(start + count)
        state.position = start + count
        return chunk_of(start, count, self.config.vocab_size, found)

    def _make_copyable(self) -> None:
        """Read the ids that were left for later when the session was rolled back."""
        state = self._recurrent
        while state.now.position < state.position:
            self._run(min(state.now.position + CHUNK_BYTES, state.position))

    def _run(self, end: int) -> NDArray[np.float32]:
        """Read the stored ids up to position `end`; logits [bytes among them, 256]."""
        state = self._recurrent
        ids = state.ids.windows(state.now.position, end - state.now.position)[:, 0]
        if len(ids) and ids[0] == BOS:
            ids = ids[1:]
        if not len(ids):
            state.now.position = end
            return np.empty((0, BYTE_VALUES), np.float32)
        if len(ids) == 1:
            values, logits = self._one
            values[0] = ids[0] - OFFSET
        else:
            values, logits = ids - OFFSET, np.empty((len(ids), BYTE_VALUES), np.float32)
        state.before.position = NOWHERE  # nothing can be returned to in it until the run is over
        self._runner.run(values, logits, state.now, state.before)
        state.advance(end)
        return logits


def chunk_of(position: int, count: int, vocab_size: int, found: NDArray[np.float32]) -> Chunk:
    """Results of `count` ids, given logits [bytes, 256] of their bytes, and of any before them."""
    logits = np.full((count, vocab_size), NEVER, np.float32)
    logits[count - min(count, len(found)) :, OFFSET:] = found[-count:]
    if len(found) < count:
        logits[: count - len(found), OFFSET:] = 0  # after BOS
    return Chunk(position, logits, np.zeros(count, np.float32), np.ones(count, np.bool_))


def check_bytes(ids: NDArray[np.int64], position: int) -> None:
    """Raises EdgebltError for ids that are no bytes, but for BOS at the beginning."""
    others = ids[int(position == 0 and len(ids) > 0 and ids[0] == BOS) :]
    if len(others) and others.min() < OFFSET:
        raise EdgebltError(f"id {others.min()} is no byte; this model reads bytes, which are ids from {OFFSET} on")
