"""Decoding with a recurrent model: feed ids in chunks of any size, roll back, fork.

Ids are those of every architecture: byte b is id b + 4. The model has no BOS of its own; a sequence begins with it all
the same, and its logits say that any byte is as likely as another.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeblt.arguments import checked_ids, whole_number
from edgeblt.bundle.architectures import ByteModelConfig
from edgeblt.bundle.contract import StageName
from edgeblt.errors import EdgebltError
from edgeblt.ids import BOS, OFFSET
from edgeblt.runtime.buffers import Chunk, Take
from edgeblt.runtime.opened_graphs import CHUNK_BYTES, OpenedGraphs, slices
from edgeblt.runtime.recurrent.runner import StateRunner
from edgeblt.runtime.recurrent.state import RecurrentState
from edgeblt.runtime.session import Session
from edgeblt.runtime.stage_work import StageWork
from edgeblt.runtime.state.snapshot import StateSnapshot
from edgeblt.runtime.turn import Turn

_NOWHERE = 1 << 62
BYTE_VALUES = 256
NEVER = np.float32(-1e4)  # logit of the ids that are no bytes; finite, so that distributions can be compared


class RecurrentSession(Session):
    """One sequence on one model, made by `Model.session`; used as `Session` says.

    Its model has one stage, whose first input is `bytes` [T], whose first output `logits` [T, 256], and whose others
    are states `past_..` and `present_..` of fixed sizes, zeros before the first byte.

    Rolling back takes no time itself: with the next id, what follows the nearest kept state is read again, at most 64
    ids where bytes came one by one, at most a chunk and 64 after longer reading, and further back from the beginning.
    """

    def __init__(self, config: ByteModelConfig, graphs: OpenedGraphs, threshold: float | None = None) -> None:
        self.config, self._graphs, self._threshold = config, graphs, threshold
        ((self._stage, contract),) = graphs.contracts.items()
        shapes = [tuple(size for size in spec.shape if isinstance(size, int)) for spec in contract.inputs[1:]]
        self.state = self._recurrent = RecurrentState(shapes)
        self._runner = StateRunner(contract, graphs[self._stage])
        self._one = np.empty(1, np.int64), np.empty((1, BYTE_VALUES), np.float32)
        self._unsettled = None
        self._at_work = None
        self._turn = Turn()

    @property
    def work(self) -> dict[StageName, StageWork]:
        """Runs, positions and seconds of the stage in this session so far, as a copy."""
        return {self._stage: replace(self._runner.work)}

    @property
    def cache_bytes(self) -> dict[StageName, int]:
        """Bytes of the states that are kept, which do not grow."""
        return {self._stage: self._recurrent.nbytes}

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

    def fork(self) -> "RecurrentSession":
        """An independent session in the same state."""
        with self._turn:
            self._settle()
            other = RecurrentSession(self.config, self._graphs, self._threshold)
            other.state.copy_from(self.state)
            return other

    def snapshot(self, earlier: StateSnapshot | None = None) -> StateSnapshot:
        text = self.saved_text
        with self._turn:
            self._settle()
            self._read_rest()
            copy = self.state.snapshot(earlier)
        if text:  # the session was looked at, not used
            self._turns_of_text = self._turn.count
        return copy

    def read_ahead(self, ids: ArrayLike) -> NDArray[np.float32]:
        """Zeros, as there is no patcher."""
        checked_ids(ids, self.config.vocab_size)
        return np.zeros(self.config.vocab_size, np.float32)

    @contextmanager
    def within_patch(self) -> Iterator[Callable[[int], NDArray[np.float32]]]:
        raise EdgebltError("this model has no patches to decode within; draft with ngram")
        yield

    def _settle(self) -> None:
        """Return to where the session was before an operation that an exception or Ctrl-C cut short: no run changes
        the states that it starts from."""
        self._graphs.check()
        if self._unsettled is not None:
            self._runner.release()
            self.state.rewind(self._unsettled)
            self._unsettled = None

    def _advance(self, ids: NDArray[np.int64], take: Take) -> None:
        for piece in slices(slice(0, len(ids)), CHUNK_BYTES):
            take(self._read_piece(ids[piece]))

    def _read_piece(self, ids: NDArray[np.int64]) -> Chunk:
        state, start, count = self._recurrent, self.state.position, len(ids)
        _check_bytes(ids, start)
        while start - state.now.position > CHUNK_BYTES:
            self._run(state.now.position + CHUNK_BYTES)
        state.ids.store(start, ids)
        logits = np.full((count, self.config.vocab_size), NEVER, np.float32)
        found = self._run(start + count)
        logits[count - min(count, len(found)) :, OFFSET:] = found[-count:]
        if len(found) < count:
            logits[: count - len(found), OFFSET:] = 0  # after BOS
        state.position = start + count
        return Chunk(start, logits, np.zeros(count, np.float32), np.ones(count, np.bool_))

    def _read_rest(self) -> None:
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
        state.before.position = _NOWHERE  # nothing can be returned to in it until the run is over
        self._runner.run(values, logits, state.now, state.before)
        state.advance(end)
        return logits


def _check_bytes(ids: NDArray[np.int64], position: int) -> None:
    """Raises EdgebltError for ids that are no bytes, but for BOS at the beginning."""
    others = ids[int(position == 0 and len(ids) > 0 and ids[0] == BOS) :]
    if len(others) and others.min() < OFFSET:
        raise EdgebltError(f"id {others.min()} is no byte; this model reads bytes, which are ids from {OFFSET} on")
