"""Calls of a model for many texts at once: generate, stream, score, and engines."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Unpack

from edgeblt.arguments import as_bytes
from edgeblt.batching.drafting import Drafting
from edgeblt.batching.engine import Engine
from edgeblt.batching.prefixes import Prefixes
from edgeblt.batching.scheduler import Scheduler
from edgeblt.batching.scoring import score_texts
from edgeblt.batching.settings import BatchSettings, completed_settings
from edgeblt.batching.text import BatchEnd, BatchPiece, BatchText, Deliver
from edgeblt.bundle.architectures import ByteModelConfig, check_prompt
from edgeblt.decoding.draft_costs import PassCosts
from edgeblt.decoding.settings import GenerationSettings
from edgeblt.decoding.speculation import DraftStatistics
from edgeblt.errors import EdgebltError
from edgeblt.runtime.batch.stepper import Stepper
from edgeblt.runtime.run_errors import EnoughMemory
from edgeblt.runtime.saved.prefix_cache import PrefixCache
from edgeblt.scores import Scores

MOST_SEQUENCES = 16  # texts under way at once, by default
LARGEST_BATCH = 1024  # texts under way at once, at most: each has caches of its own


class BatchCalls:
    """Calls of a model for many texts. They share steps, in which weights are read once for all of them, and each
    text's bytes are the same as alone."""

    config: ByteModelConfig
    prefix_cache: PrefixCache
    threshold: float | None
    _step_costs: dict[int, PassCosts]

    if TYPE_CHECKING:

        @property
        def is_exact(self) -> bool: ...

        def draft_statistics(self, draft: str) -> DraftStatistics: ...

    def engine(self, most_sequences: int = MOST_SEQUENCES, memory: int | None = None) -> Engine:
        """An engine, whose thread generates any number of texts, which come and go: use it in a `with` block.

        most_sequences: texts under way at once, from 1 to 1,024; others wait.
        memory: bytes that the states of all of them may take; None, the default, is half of what is free now.

        Raises EdgebltError for arguments out of range.
        """
        return Engine(self.config, self._stepper(most_sequences, memory), self._prefixes(), self._drafting())

    def generate_batch(
        self,
        prompts: Sequence[bytes | str],
        settings: GenerationSettings | None = None,
        *,
        most_sequences: int = MOST_SEQUENCES,
        memory: int | None = None,
        **changes: Unpack[BatchSettings],
    ) -> list[bytes]:
        """Generate what follows each prompt: the bytes that `generate` gives for it, in the order of the prompts.

        prompts: bytes, or str, which are read as UTF-8; they may be empty.
        settings: a `GenerationSettings` for all; None, the default, has the default of each. Only n-grams
            draft in a batch.
        most_sequences, memory: as `engine` takes them.
        changes: any setting of `GenerationSettings`, by its name.

        Raises EdgebltError for arguments out of range, and, naming the prompt, where the model fails on a text.
        """
        texts = [bytearray() for _ in prompts]
        for index, piece in self.stream_batch(
            prompts, settings, most_sequences=most_sequences, memory=memory, **changes
        ):
            texts[index] += piece
        return [bytes(text) for text in texts]

    def stream_batch(
        self,
        prompts: Sequence[bytes | str],
        settings: GenerationSettings | None = None,
        *,
        most_sequences: int = MOST_SEQUENCES,
        memory: int | None = None,
        **changes: Unpack[BatchSettings],
    ) -> Iterator[tuple[int, bytes]]:
        """Generate as `generate_batch` does; yields each piece, with the index of its prompt, as soon as it is certain.

        Takes the arguments of `generate_batch`, checks them at once, and raises as it does.
        """
        read = [as_bytes("prompt", prompt) for prompt in prompts]
        chosen, ends = completed_settings(self.config, settings, **changes), self.config.generation.ends
        drafting = self._drafting()
        drafting.check(chosen.draft)
        scheduler = Scheduler(self._stepper(most_sequences, memory), self._prefixes(), drafting)
        pieces = deque[tuple[int, BatchPiece | BatchEnd]]()

        def collector(index: int) -> Deliver:
            return lambda piece: pieces.append((index, piece))

        for prompt in read:
            check_prompt(self.config, prompt)
        for index, prompt in enumerate(read):
            scheduler.add(BatchText(prompt, chosen, ends, collector(index)))
        return _streamed(scheduler, pieces)

    def score_batch(self, texts: Sequence[bytes | str]) -> list[Scores]:
        """Scores of each text, as `score` gives them.

        texts: bytes, or str, which are read as UTF-8; they may be empty.
        """
        data = [as_bytes("texts", text) for text in texts]
        with EnoughMemory("to score texts"):
            return score_texts(self._stepper(MOST_SEQUENCES, None), data)

    def _stepper(self, most_sequences: int, memory: int | None) -> Stepper:
        """A stepper for as many sequences. Raises EdgebltError for arguments out of range, and for a closed model."""
        raise NotImplementedError

    def _prefixes(self) -> Prefixes:
        """The model's prefix cache, for texts of a batch."""
        return Prefixes(self.prefix_cache, self.threshold, lambda: self.is_exact)

    def _drafting(self) -> Drafting:
        """Drafts for texts of a batch, by what the model's batches have measured so far."""
        return Drafting(self.draft_statistics, self._step_costs)


def _streamed(scheduler: Scheduler, pieces: deque[tuple[int, BatchPiece | BatchEnd]]) -> Iterator[tuple[int, bytes]]:
    with EnoughMemory("to generate texts"):
        try:
            while not scheduler.is_idle or pieces:
                if not pieces:
                    scheduler.step()
                while pieces:
                    index, piece = pieces.popleft()
                    if isinstance(piece, BatchPiece):
                        yield index, piece.data
                    elif piece.error:
                        raise EdgebltError(f"prompt {index}: {piece.error}")
        finally:
            scheduler.end_all((), BatchEnd("cancelled"))
