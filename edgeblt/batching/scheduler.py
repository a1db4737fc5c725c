"""Which texts take part in a step, and with how many ids.

A text that generates takes part in every step, with the id it has just chosen, those that a constraint forced after it,
and those drafted after it where they save time: none waits for longer than a step.
Prompts are read in pieces beside them, at most `PROMPT_ROWS` ids a step, and the text that has waited longest is served
first: where n texts read, each is served at least once in n steps. Texts that find no room wait in the order in which
they came. Where memory ends, the newest text gives its state back, waits, and later reads again what it had read, which
changes nothing of what it generates; the oldest always goes on.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from edgeblt.batching.drafting import Drafting
from edgeblt.batching.prefixes import Prefixes
from edgeblt.batching.text import BatchEnd, BatchText
from edgeblt.decoding.sampling_rows import foreseen_ids
from edgeblt.errors import EdgebltError
from edgeblt.runtime.batch.stepper import StepPart, Stepper, StepResult
from edgeblt.runtime.buffers import Chunk
from edgeblt.runtime.saved.prefix_cache import PrefixCache

PROMPT_ROWS = 128  # most ids of prompts in a step


@dataclass
class Tally:
    """Numbers of what a scheduler has done so far.

    steps: steps run.
    rows: ids read in them, also those read for the second time.
    prompt_bytes: those among them that are bytes of prompts.
    generated: ids that were chosen or forced.
    drafted, accepted: ids that were drafted, and those of them that were then chosen.
    prefix_hits, prefix_misses: how often a text started from a kept state, and from the beginning.
    """

    steps: int = 0
    rows: int = 0
    prompt_bytes: int = 0
    generated: int = 0
    drafted: int = 0
    accepted: int = 0
    prefix_hits: int = 0
    prefix_misses: int = 0


class Scheduler:
    """Runs texts, step by step, until each has ended. Used by one thread."""

    def __init__(self, stepper: Stepper, prefixes: Prefixes | None = None, drafting: Drafting | None = None) -> None:
        """Start without texts.

        prefixes: states kept of earlier texts, from which others start; None keeps none.
        drafting: drafts for the texts whose settings allow them; None drafts nothing.
        """
        self._drafting = drafting
        self._stepper, self._prefixes = stepper, prefixes or Prefixes(PrefixCache(0), None, lambda: False)
        self._waiting: deque[BatchText] = deque()
        self._active: list[BatchText] = []  # texts with a sequence, oldest first
        self.tally = Tally()

    @property
    def steps(self) -> int:
        """Number of steps run so far."""
        return self.tally.steps

    @property
    def is_idle(self) -> bool:
        return not self._waiting and not self._active

    @property
    def active_count(self) -> int:
        """Number of texts that have a state."""
        return len(self._active)

    def add(self, text: BatchText) -> None:
        """Let a text join as soon as there is room for it."""
        if text.is_empty:
            text.finish(BatchEnd("length"))
            for fork in text.forks:
                self.add(fork)
        else:
            self._waiting.append(text)

    def step(self) -> None:
        """Let texts leave and join, and run one step on those that are there."""
        self._leave()
        self._join()
        began = self._drafting.clock() if self._drafting else 0.0
        chosen = self._fitting(self._with_drafts(self._choose()))
        if not chosen:
            return
        self.tally.steps += 1
        are_plain = all(count == 1 + len(text.drafted) and text.generated for text, count in chosen)
        results = self._stepper.run([_part(text, count) for text, count in chosen])
        seconds = self._drafting.clock() - began if self._drafting else 0.0
        drafted, accepted = sum(len(text.drafted) for text, _ in chosen), self.tally.accepted
        self._choose_all(
            [
                (text, chunk)
                for (text, _), result in zip(chosen, results, strict=True)
                if (chunk := self._read(text, result))
            ]
        )
        self.tally.drafted += drafted
        if self._drafting and are_plain:
            self._drafting.add(len(chosen), drafted, self.tally.accepted - accepted, seconds)
        self._leave()

    def end_all(self, others: Iterable[BatchText], end: BatchEnd) -> None:
        """End all texts, and others that were not added."""
        for text in (*self._active, *self._waiting, *others):
            for each in (text, *text.forks):
                each.finish(end)
        self._active, self._waiting = [], deque()

    def _leave(self) -> None:
        for text in (*self._active, *self._waiting):
            if text.is_cancelled:
                text.finish(BatchEnd("cancelled"))
                self._release_forks(text)
        self._active = [text for text in self._active if not text.end]
        if any(text.end for text in self._waiting):
            self._waiting = deque(text for text in self._waiting if not text.end)

    def _join(self) -> None:
        while self._waiting:
            text = self._waiting[0]
            was_found = self._prefixes.open(self._stepper, text)
            if was_found is None:
                return
            self.tally.prefix_hits += was_found
            self.tally.prefix_misses += not was_found
            text.turn = self.steps
            self._active.append(self._waiting.popleft())

    def _choose(self) -> list[tuple[BatchText, int]]:
        """Texts of the next step, each with the number of ids that it reads."""
        counts = {id(text): text.most_next for text in self._active if not text.is_reading}
        left = PROMPT_ROWS
        for text in sorted((text for text in self._active if text.is_reading), key=lambda text: text.turn):
            count = min(text.most_next, left)
            if count:
                counts[id(text)] = count
                left -= count
        return [(text, counts[id(text)]) for text in self._active if id(text) in counts]

    def _with_drafts(self, chosen: list[tuple[BatchText, int]]) -> list[tuple[BatchText, int]]:
        """The same with the ids drafted for those that have chosen one, where there is memory for them."""
        texts = [text for text, _ in chosen if not text.is_reading]
        if self._drafting is None or not self._drafting.draft(texts):
            return chosen
        longer = [(text, count + len(text.drafted)) for text, count in chosen]
        if self._fits(longer):
            return longer
        self._drafting.withdraw(texts)
        return chosen

    def _fits(self, chosen: list[tuple[BatchText, int]]) -> bool:
        return self._stepper.fits([_part(text, count) for text, count in chosen])

    def _fitting(self, chosen: list[tuple[BatchText, int]]) -> list[tuple[BatchText, int]]:
        """The same without the newest texts, where there is no memory for all; these wait."""
        while chosen and not self._fits(chosen):
            newest = self._active.pop()
            chosen = [(text, count) for text, count in chosen if text is not newest]
            if self._active:
                newest.close()
                self._waiting.appendleft(newest)
            else:
                newest.finish(BatchEnd("error", error=_too_long()))
                self._release_forks(newest)
        return chosen

    def _read(self, text: BatchText, result: StepResult) -> Chunk | None:
        """Result of a step for a text that has read all ids it had to, and now chooses the next; None for others."""
        if isinstance(result, EdgebltError):
            text.finish(BatchEnd("error", error=result))
            self._release_forks(text)
            return None
        text.turn = self.steps
        self._count(text, result)
        text.read(result)
        self._prefixes.keep(text)
        return None if text.unread else result

    def _choose_all(self, texts: list[tuple[BatchText, Chunk]]) -> None:
        """Let texts choose what comes next, sampling from the first row of each at once."""
        samplers = [text.sampler for text, _ in texts]
        foreseen = foreseen_ids(samplers, [chunk.logits[-1 - len(text.drafted)] for text, chunk in texts])
        for (text, chunk), id in zip(texts, foreseen, strict=True):
            self._fork(text, chunk)
            self._choose_next(text, chunk, id)

    def _count(self, text: BatchText, result: Chunk) -> None:
        end = result.position + len(result.logits)
        self.tally.rows += len(result.logits)
        self.tally.prompt_bytes += max(min(end, text.prompt_count) - max(result.position, 1), 0)

    def _choose_next(self, text: BatchText, result: Chunk, foreseen: int | None = None) -> None:
        before = text.generated
        self.tally.accepted += text.choose(result, foreseen)
        self.tally.generated += text.generated - before

    def _fork(self, text: BatchText, result: Chunk) -> None:
        """Start the other answers to a prompt that was just read, in copies of its state or by reading it again."""
        for other in text.forks:
            assert text.sequence
            if other.is_cancelled:
                other.finish(BatchEnd("cancelled"))
                continue
            other.sequence = text.sequence.fork()
            if other.sequence:
                other.unread, other.turn = [], self.steps
                other.prompt_details, other.keep = text.prompt_details, text.keep
                self._choose_next(other, result)
                if not other.end:
                    self._active.append(other)
            else:
                self._waiting.append(other)
        text.forks = []

    def _release_forks(self, text: BatchText) -> None:
        """Let the other answers of a text that has ended before its prompt was read go on by themselves."""
        for other in text.forks:
            self.add(other)
        text.forks = []


def _part(text: BatchText, count: int) -> StepPart:
    assert text.sequence
    return StepPart(text.sequence, np.array(text.next_ids[:count], np.int64))


def _too_long() -> EdgebltError:
    return EdgebltError(
        "the state of one text takes more than the memory allowed for all; allow more, or use a shorter text"
    )
