"""One text under way in a batch: what it still has to read, how it goes on, and how it ended."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from edgeblt.decoding.details import ByteDetails, DetailRecorder
from edgeblt.decoding.drafters import NgramDrafter
from edgeblt.decoding.output import EndReason
from edgeblt.decoding.settings import GenerationSettings, text_output, text_sampler
from edgeblt.decoding.speculation import verified_ids
from edgeblt.errors import EdgebltError
from edgeblt.ids import BOS, OFFSET, encode
from edgeblt.runtime.batch.stepper import BatchSequence, room
from edgeblt.runtime.buffers import Chunk

SHORT = 32  # ids that a text may read in a step without counting as a reader: one chosen, and those forced after it


@dataclass(frozen=True)
class BatchEnd:
    """How a text in a batch ended.

    reason: as in `decoding.output.TextEnd`, or "cancelled", or "error" where the model failed on it.
    stop: the stop sequence that was generated, where one was.
    error: what failed, where something did.
    """

    reason: EndReason | Literal["cancelled", "error"]
    stop: bytes | None = None
    error: EdgebltError | None = None


class BatchPiece(NamedTuple):
    """A piece of a text, as soon as it is certain, with the details of each of its bytes where they are recorded."""

    data: bytes
    details: tuple[ByteDetails, ...] = ()


Deliver = Callable[["BatchPiece | BatchEnd"], None]
"""Takes each piece of a text as it becomes certain, and in the end how it ended."""


@dataclass(frozen=True)
class Recorded:
    """Details that are recorded of a text.

    alternatives: number of likeliest alternatives in the details of each byte.
    with_prompt: whether the prompt's bytes have details too.
    """

    alternatives: int
    with_prompt: bool = False


class BatchText:
    """A text that is generated in a batch. It reads `unread`, then chooses an id, which it reads next.

    sequence: its state, None while it waits; all it has read is read again when it gets another.
    sampler: chooses its ids.
    draft, drafter: the setting, and what drafts for it, if something does.
    drafted: ids that are read after `unread` and verified: those that are not chosen are forgotten again.
    prompt_details: details of the bytes of its prompt that it has read, where these are recorded.
    """

    def __init__(
        self,
        prompt: bytes,
        settings: GenerationSettings,
        ends: Sequence[int],
        deliver: Deliver,
        recorded: Recorded | None = None,
    ) -> None:
        """Start before the prompt; `settings` are completed, and `ends` the ids that end texts."""
        self.unread: list[int] = [BOS, *encode(prompt).tolist()]
        self.prompt_count = len(self.unread)
        self.sequence: BatchSequence | None = None
        self.turn = 0  # number of the step in which it last read
        self.is_cancelled = False
        self.end: BatchEnd | None = None
        self.forks: list[BatchText] = []  # other answers to its prompt, which start when it has read it
        self.generated = 0  # ids chosen so far
        self.prompt_details: list[ByteDetails] = []
        self.marks: list[int] = []  # positions, ascending, at which its state is kept
        self.keep: Callable[[BatchSequence], None] | None = None  # keeps the state at its end
        self.draft = settings.draft
        self.drafter: NgramDrafter | None = None
        self.drafted: list[int] = []
        self.sampler, self._output = text_sampler(settings, ends, prompt), text_output(settings, prompt)
        self._recorder = DetailRecorder(recorded.alternatives, ends) if recorded else None
        self._with_prompt = recorded is not None and recorded.with_prompt
        self._most, self._deliver = settings.max_new_bytes, deliver

    @property
    def is_reading(self) -> bool:
        """Whether it has many ids to read, those of a prompt or those that it read before."""
        return len(self.unread) > SHORT

    @property
    def is_empty(self) -> bool:
        """Whether it is to have no bytes at all."""
        return self._most == 0

    @property
    def is_recording(self) -> bool:
        """Whether bytes of its prompt still lack their details, so that it must read them."""
        return self._with_prompt and len(self.prompt_details) < self.prompt_count - 1

    @property
    def most_next(self) -> int:
        """Most ids that it may read in the next step."""
        assert self.sequence
        position = self.sequence.position
        most = min(len(self.unread), room(position))
        return min(most, self.marks[0] - position) if self.marks and self.marks[0] > position else most

    @property
    def next_ids(self) -> list[int]:
        """The ids that it has still to read, with those drafted after them."""
        return self.unread + self.drafted

    @property
    def most_drafted(self) -> int:
        """Most ids that may be drafted after the one it reads next; 0 where it reads others than the one it chose."""
        if not self.generated or len(self.unread) != 1 or self.sequence is None:
            return 0
        return min(room(self.sequence.position), self._most - self.generated) - 1

    def permitted(self, ids: list[int]) -> list[int]:
        """Beginning of `ids`, drafted one after the other, that the settings let follow."""
        return ids[: self.sampler.allowed_ids(ids)]

    def read(self, chunk: Chunk) -> None:
        """Count its next ids as read; `chunk` is what the step gave for them."""
        count = len(chunk.logits)
        if self._recorder and self.is_recording:
            self._record_prompt(self._recorder, chunk)
        del self.unread[:count]

    def _record_prompt(self, recorder: DetailRecorder, chunk: Chunk) -> None:
        """Record the prompt's bytes after each id of a chunk, which may be read for the second time."""
        skipped = len(self.prompt_details) - chunk.position
        ids = self.unread[1 + skipped : min(len(chunk.logits) + 1, self.prompt_count - chunk.position)]
        self.prompt_details += recorder.of_rows(chunk, skipped, ids)

    def choose(self, chunk: Chunk, foreseen: int | None = None) -> int:
        """Choose and deliver what comes next, given the results after all it has read; ends it where nothing is.

        foreseen: what its sampler gives for the first of the rows, where that is known.

        Returns how many of the drafted ids were accepted; the others are forgotten.
        """
        drafted, self.drafted = self.drafted, []
        try:
            chosen, forced = self._next_ids(chunk, drafted, foreseen)
            accepted = max(len(chosen) - 1, 0)
            self._forget(len(drafted) - accepted)
        except EdgebltError as error:
            self.finish(BatchEnd("error", error=error))
            return 0
        following = chosen + forced
        self.unread = following[accepted:]
        self.generated += len(following)
        if self.drafter:
            if drafted:
                self.drafter.judge(len(drafted), accepted)
            self.drafter.extend(following)
        self._deliver_all(following)
        return accepted

    def _forget(self, count: int) -> None:
        """Forget the ids read last, which were drafted wrongly."""
        if count:
            assert self.sequence
            self.sequence.rollback(self.sequence.position - count)

    def _deliver_all(self, ids: list[int]) -> None:
        for id in ids:
            if id in self.sampler.ends:
                return self._end_with("eos")
            self._give(self._output.take(id - OFFSET))
            if self._output.stop is not None:
                return self.finish(BatchEnd("stop", self._output.stop))
        if self.sampler.is_complete:
            self._end_with("constraint")
        elif self.generated >= self._most:
            self._end_with("length")

    def _next_ids(self, chunk: Chunk, drafted: list[int], foreseen: int | None) -> tuple[list[int], list[int]]:
        """The ids that are chosen next, accepted ones first, and those forced after them.

        Nothing is chosen where ids are forced from the beginning, or a constraint is complete there.
        """
        if self._recorder:
            return self._recorded_ids(self._recorder, chunk, drafted, foreseen), []
        if not self.generated:
            if self.sampler.is_complete:
                return [], []
            if forced := self.sampler.forced(self._most):
                return [], forced
        chosen = verified_ids(self.sampler, chunk.logits[-1 - len(drafted) :], drafted, None, foreseen)
        if chosen[-1] in self.sampler.ends:
            return chosen, []
        return chosen, self.sampler.forced(self._most - self.generated - len(chosen))

    def _recorded_ids(
        self, recorder: DetailRecorder, chunk: Chunk, drafted: list[int], foreseen: int | None
    ) -> list[int]:
        """The next ids, recorded; a forced one has details of its own, so it is read before the next is chosen."""
        if self.sampler.is_complete:
            return []
        recorder.read(chunk, 1 + len(drafted))
        forced = [] if drafted else self.sampler.forced(1)
        if not forced:
            return verified_ids(self.sampler, chunk.logits[-1 - len(drafted) :], drafted, recorder, foreseen)
        recorder.add(-1, forced[0], "forced")
        return forced

    def _give(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self._deliver(BatchPiece(piece, self._recorder.take(len(piece)) if self._recorder else ()))

    def _end_with(self, reason: EndReason) -> None:
        self._give(self._output.finish())
        self.finish(BatchEnd(reason))

    def finish(self, end: BatchEnd) -> None:
        """End the text and free its state; nothing is delivered afterwards."""
        if self.end:
            return
        self.end = end
        if self.sequence and self.keep and end.reason not in ("error", "cancelled"):
            self.keep(self.sequence)
        self.close()
        self._deliver(end)

    def close(self) -> None:
        """Free its state, which it gets back by reading everything again."""
        if self.sequence:
            if not self.end:
                self.unread = [*self.sequence.ids.tolist(), *self.unread]
            self.sequence.close()
            self.sequence = None
