"""The patcher of one session: which positions start a patch. It may read ahead of the ids fed to the session."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeblt.bundle.config import ModelConfig
from edgeblt.bundle.contract import STATE_WIDTH
from edgeblt.runtime.opened_graphs import MANY
from edgeblt.runtime.stage import KeptArrays, StageRunner
from edgeblt.runtime.state.cache import pieces
from edgeblt.runtime.state.sequence import SequenceState


class Patching(NamedTuple):
    """Results of the patcher for T ids; valid until as many are read again."""

    logits: NDArray[np.float32]  # [T, vocab]: for the id after each id; all 0 where the patching rule uses none
    entropies: NDArray[np.float32]  # [T] nats
    patch_starts: NDArray[np.bool_]  # [T]: whether the id after each id starts a patch
    states: NDArray[np.float32]  # [T, STATE_WIDTH]

    @classmethod
    def empty(cls, config: ModelConfig, count: int) -> "Patching":
        return cls(
            np.zeros((count, config.vocab_size), np.float32),
            np.empty(count, np.float32),
            np.empty(count, np.bool_),
            np.empty((count, STATE_WIDTH), np.float32),
        )

    def rows(self, start: int, end: int) -> "Patching":
        """Rows from `start` to `end`, as views."""
        some = slice(start, end)
        return Patching(self.logits[some], self.entropies[some], self.patch_starts[some], self.states[some])

    def own(self) -> "Patching":
        """Results that stay valid: these, unless a reader keeps the arrays for the next ids."""
        if len(self.entropies) >= MANY:
            return self
        return Patching(self.logits.copy(), self.entropies.copy(), self.patch_starts.copy(), self.states.copy())

    def store(self, start: int, other: "Patching") -> None:
        end = start + len(other.entropies)
        self.logits[start:end] = other.logits
        self.entropies[start:end] = other.entropies
        self.patch_starts[start:end] = other.patch_starts
        self.states[start:end] = other.states


NO_PATCHING = Patching(
    logits=np.empty((0, 0), np.float32),
    entropies=np.empty(0, np.float32),
    patch_starts=np.empty(0, np.bool_),
    states=np.empty((0, 0), np.float32),
)


class PatchReader:
    """Reads each id once, in order; results of ids read ahead are kept until the session is fed these ids or others."""

    def __init__(
        self,
        config: ModelConfig,
        stage: StageRunner,
        state: SequenceState,
        rollback: int,
        threshold: float | None,
    ) -> None:
        """Read for the sequence whose state this is; `threshold`, in nats, replaces the graph's own."""
        self._config, self._stage, self._state, self._rollback = config, stage, state, rollback
        self._ahead_ids: list[int] = []
        self._ahead = Patching.empty(config, rollback)
        settings = {} if threshold is None else {"threshold": np.array([threshold], np.float32)}
        self._buffers = KeptArrays(lambda count: _Buffers(config, count, settings))

    def read(self, position: int, ids: NDArray[np.int64]) -> Patching:
        """Results for `ids`, which the session is fed at this position."""
        known = self._agree(position, ids)
        if not known:
            return self._run(position, ids)
        found = Patching.empty(self._config, len(ids))
        found.store(0, self._ahead.rows(0, known))
        if known < len(ids):
            found.store(known, self._run(position + known, ids[known:]))
        del self._ahead_ids[:known]
        self._ahead.store(0, self._ahead.rows(known, known + len(self._ahead_ids)))
        return found

    def read_ahead(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits [vocab] after the last of `ids`, which the session may be fed next.

        At most as many ids as the session rolls back at once.
        """
        position = self._state.position
        known = self._agree(position, ids)
        if known == len(ids):
            self._forget_from(position, known)
        else:
            for cut in pieces(position + known, len(ids) - known):
                start = known + cut.start
                self._ahead.store(start, self._run(position + start, ids[start : known + cut.stop]))
            self._ahead_ids.extend(ids[known:].tolist())
        logits: NDArray[np.float32] = self._ahead.logits[len(ids) - 1]
        return logits

    def forget_ahead(self) -> None:
        """Forget the ids read ahead."""
        if self._ahead_ids:
            self._forget_from(self._state.position, 0)

    def clear(self) -> None:
        """Forget the ids read ahead of a state that is cleared, too."""
        self._ahead_ids.clear()

    def _agree(self, position: int, ids: NDArray[np.int64]) -> int:
        """Number of `ids` that were read ahead of the position; other ids read ahead are forgotten."""
        if not self._ahead_ids:
            return 0
        known = 0
        for expected, id in zip(self._ahead_ids, ids.tolist(), strict=False):
            if expected != id:
                break
            known += 1
        if known < len(ids) and known < len(self._ahead_ids):
            self._forget_from(position, known)
        return known

    def _forget_from(self, position: int, count: int) -> None:
        """Forget the ids read ahead of the position but for the first `count`."""
        del self._ahead_ids[count:]
        self._state.rewind_patcher(position + count)

    def _run(self, position: int, ids: NDArray[np.int64]) -> Patching:
        count, states = len(ids), self._state.patcher_states
        buffers = self._buffers[count]
        buffers.inputs["ids"][:] = ids
        buffers.inputs["position"][0] = position
        if position:
            buffers.inputs["state"][:] = states.rows(position - 1, position)[0]
        if cache := self._state.caches.get("patcher"):
            buffers.total_length[0] = cache.advance(count)
        self._stage.run(buffers.inputs, buffers.outputs, count, 0)
        states.append(buffers.found.states, max(position + count - 2 * self._rollback, 0) - 1)
        return buffers.found


class _Buffers:
    def __init__(self, config: ModelConfig, count: int, settings: dict[str, NDArray[Any]]) -> None:
        self.total_length = np.zeros(1, np.int32)
        self.found = Patching.empty(config, count)
        self.inputs: dict[str, NDArray[Any]] = {
            "ids": np.zeros(count, np.int64),
            "position": np.zeros(1, np.int64),
            "state": np.zeros(STATE_WIDTH, np.float32),
            **settings,
        }
        self.outputs: dict[str, NDArray[Any]] = {
            "entropies": self.found.entropies,
            "patch_starts": self.found.patch_starts,
            "states": self.found.states,
        }
        if config.patcher:
            self.inputs["total_length"] = self.total_length
            self.outputs["logits"] = self.found.logits
