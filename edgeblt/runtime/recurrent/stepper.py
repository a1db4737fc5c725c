"""Common steps of models of one stage whose states have one size: one run on the rows of all sequences.

Each sequence has two slots in the states that the stage reads and writes in place. One id changes one slot; of several
the first is read from one slot to the other, the rest back: where some were drafted wrongly, only the right ones are
read again.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgeblt.bundle.architectures import ByteModelConfig
from edgeblt.bundle.contract import StageName
from edgeblt.ids import BOS, OFFSET
from edgeblt.runtime.batch.ragged import RaggedSequence, RaggedStepper
from edgeblt.runtime.batch.rows import StepRows
from edgeblt.runtime.buffers import Chunk
from edgeblt.runtime.opened_graphs import CHUNK_BYTES, OpenedGraphs
from edgeblt.runtime.recurrent.session import BYTE_VALUES, check_bytes, chunk_of
from edgeblt.runtime.recurrent.state import KEPT, NOWHERE, RecurrentState, States, state_shapes
from edgeblt.runtime.stage import KeptArrays, StageRunner
from edgeblt.runtime.stage_work import StageWork
from edgeblt.runtime.state.cache import KeyValueCache
from edgeblt.runtime.state.device_array import Array
from edgeblt.runtime.state.sequence import SequenceState

SLOTS = 2  # each sequence has so many


class ByteRows:
    """Bytes of T rows, and their logits."""

    def __init__(self, count: int) -> None:
        self.bytes = np.empty(count, np.int64)
        self.logits = np.empty((count, BYTE_VALUES), np.float32)


class UnreadBytes:
    """The bytes up to position `end` that a state has not read, as rows of a run."""

    def __init__(self, state: RecurrentState, end: int) -> None:
        self._state, self._end = state, end
        start = state.now.position
        ids = state.ids.windows(start, end - start)[:, 0]
        self.values: NDArray[np.int64] = ids[int(len(ids) > 0 and ids[0] == BOS) :] - OFFSET
        later = end - state.position - 1  # bytes after the first new one
        self._first = len(self.values) - later if 0 < later < len(self.values) else 0

    def begin(self, row: int) -> list[tuple[int, int, int]]:
        """Their parts, from this row on; until `finish` nothing can be returned to in what a run overwrites."""
        now, before, end = self._state.now, self._state.before, row + len(self.values)
        if not len(self.values):
            return []
        now.position = NOWHERE
        if not self._first:
            return [(end, now.slot, now.slot)]
        before.position = NOWHERE
        return [(row + self._first, now.slot, before.slot), (end, before.slot, now.slot)]

    def finish(self) -> None:
        """Count them as read."""
        state, end = self._state, self._end
        if self._first:
            state.advance_by_two(state.position + 1, end)
        elif len(self.values):
            state.advance_in_place(end)
        else:
            state.now.position = state.position = end


class SlotRunner:
    """Runs the stage on the rows of a step, over states in slots."""

    def __init__(self, config: ByteModelConfig, graphs: OpenedGraphs, slots: int) -> None:
        ((self._stage, contract),) = graphs.contracts.items()
        self._vocab_size = config.vocab_size
        self._buffers = [np.zeros(shape, np.float32) for shape in state_shapes(contract, slots)]
        past, present = contract.inputs[1 : 1 + len(self._buffers)], contract.outputs[1:]
        self._past = {spec.name: buffer for spec, buffer in zip(past, self._buffers, strict=True)}
        self._present = {spec.name: buffer for spec, buffer in zip(present, self._buffers, strict=True)}
        self._runner = StageRunner(self._stage, graphs[self._stage], None)
        self._rows, self._parts = KeptArrays(ByteRows), KeptArrays(lambda count: np.empty((count, 3), np.int64))

    @property
    def work(self) -> dict[StageName, StageWork]:
        """Work of the stage so far."""
        return {self._stage: self._runner.work}

    def states(self, slot: int) -> States:
        """The arrays of a slot."""
        return States([buffer[slot : slot + 1] for buffer in self._buffers], slot)

    def run(self, rows: StepRows) -> list[Chunk]:
        """Results of each sequence's rows, whose states then hold them."""
        states = [recurrent(state) for state in rows.states]
        for state, ids, position in zip(states, rows.ids, rows.positions, strict=True):
            check_bytes(ids, position)
            self.catch_up(state, CHUNK_BYTES)
            state.ids.store(position, ids)
        ends = [position + count for position, count in zip(rows.positions, rows.counts, strict=True)]
        found = self._read([UnreadBytes(state, end) for state, end in zip(states, ends, strict=True)])
        return [
            chunk_of(position, count, self._vocab_size, logits)
            for position, count, logits in zip(rows.positions, rows.counts, found, strict=True)
        ]

    def catch_up(self, state: RecurrentState, most: int = 0) -> None:
        """Read ids of a state that was rolled back, until at most so many are left to be read with the next."""
        while state.position - state.now.position > most:
            self._read([UnreadBytes(state, min(state.now.position + CHUNK_BYTES, state.position))])

    def _read(self, unread: Sequence[UnreadBytes]) -> list[NDArray[np.float32]]:
        """Logits [bytes, 256] of each state's bytes, until the next run."""
        *starts, count = np.cumsum([0, *(len(some.values) for some in unread)]).tolist()
        rows = self._rows[count]
        parts = [part for some, start in zip(unread, starts, strict=True) for part in some.begin(start)]
        if count:
            np.concatenate([some.values for some in unread], out=rows.bytes)
            sequences = self._parts[len(parts)]
            sequences[:] = parts
            inputs: dict[str, Array] = {"bytes": rows.bytes, **self._past, "sequences": sequences}
            self._runner.run(inputs, {"logits": rows.logits, **self._present}, count, 0)
        for some in unread:
            some.finish()
        return np.split(rows.logits, starts[1:])


class RecurrentStepper(RaggedStepper):
    """Runs common steps of models whose sessions are `RecurrentSession`s, and whose states have slots."""

    _runner: SlotRunner

    def __init__(
        self, config: ByteModelConfig, graphs: OpenedGraphs, threshold: float | None, most_sequences: int, memory: int
    ) -> None:
        (contract,) = graphs.contracts.values()
        slot_bytes = sum(4 * int(np.prod(shape)) for shape in state_shapes(contract))
        self._sequence_bytes = (SLOTS + KEPT) * slot_bytes
        most = min(most_sequences, max(memory // self._sequence_bytes, 1))
        super().__init__(config, graphs, threshold, most, memory)
        self._runner = SlotRunner(config, graphs, SLOTS * most)

    @property
    def state_bytes(self) -> int:
        return len(self._sequences) * self._sequence_bytes

    def settle(self, sequence: RaggedSequence) -> None:
        """Return to where a sequence was before what was cut short. Nothing where nothing was."""
        if sequence.unsettled is not None:
            sequence.state.rewind(sequence.unsettled)
            sequence.unsettled = None

    def make_copyable(self, sequence: RaggedSequence) -> None:
        self.settle(sequence)
        sequence.unsettled = sequence.state.position
        self._runner.catch_up(recurrent(sequence.state))
        sequence.unsettled = None

    def _has_room(self, size: int) -> bool:
        return super()._has_room(size + self._sequence_bytes)

    def _new_state(self, slot: int, caches: Mapping[StageName, KeyValueCache]) -> SequenceState:
        state = RecurrentState(*(self._runner.states(SLOTS * slot + number) for number in range(SLOTS)))
        state.clear()
        return state


def recurrent(state: SequenceState) -> RecurrentState:
    """A state that is known to be of one size."""
    assert isinstance(state, RecurrentState)
    return state
