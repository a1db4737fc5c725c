"""An engine: one thread that owns a model's sequences, and answers that get their bytes through queues."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Condition, Thread, get_ident
from types import TracebackType
from typing import Self, Unpack

from edgeblt.arguments import as_bytes, whole_number
from edgeblt.batching.answers import Answer, AsyncAnswer
from edgeblt.batching.drafting import Drafting
from edgeblt.batching.prefixes import Prefixes
from edgeblt.batching.scheduler import Scheduler
from edgeblt.batching.settings import BatchSettings, completed_settings, recorded_details, settings_of_answers
from edgeblt.batching.text import BatchEnd, BatchPiece, BatchText, Deliver, Recorded
from edgeblt.bundle.architectures import ByteModelConfig, check_prompt
from edgeblt.decoding.settings import GenerationSettings
from edgeblt.errors import EdgebltError
from edgeblt.runtime.batch.stepper import Stepper


@dataclass(frozen=True)
class EngineCounts:
    """Numbers of an engine's texts now, and of what it has done so far.

    waiting: texts that have no state: they wait for room, or for the prompt that they share to be read.
    active: texts with a state.
    finished: texts that have ended, for whatever reason.
    steps: steps run.
    rows: ids read in these steps, so that `rows / steps` of them share a step.
    prompt_bytes: bytes of prompts read; a shared prompt counts once, one that was read again each time.
    generated_bytes: bytes generated, and ids that ended a text.
    drafted_bytes, accepted_bytes: ids drafted, and those of them that were generated.
    prefix_hits, prefix_misses: how often a text started from a state in the model's prefix cache, and from its
        beginning; one that gave its state back starts again.
    """

    waiting: int
    active: int
    finished: int
    steps: int
    rows: int
    prompt_bytes: int
    generated_bytes: int
    drafted_bytes: int
    accepted_bytes: int
    prefix_hits: int
    prefix_misses: int


class Engine:
    """Generates many texts at once on one model, by `Model.engine`; a context manager.

    Texts may be added at any time, from any thread; each joins at the next step. They get the same bytes as alone.
    """

    def __init__(
        self,
        config: ByteModelConfig,
        stepper: Stepper,
        prefixes: Prefixes | None = None,
        drafting: Drafting | None = None,
    ) -> None:
        self._config, self._stepper, self._drafting = config, stepper, drafting
        self._scheduler = Scheduler(stepper, prefixes, drafting)
        self._changed = Condition()
        self._joining: list[BatchText] = []
        self._started = self._finished = 0  # texts
        self._is_closing = False
        self._thread = Thread(target=self._run, name="edgeblt-engine", daemon=True)
        self._thread.start()

    @property
    def is_batched(self) -> bool:
        """Whether weights are read once for all texts of a step. False without the native library and on a GPU."""
        return self._stepper.is_batched

    @property
    def is_running(self) -> bool:
        """Whether texts may be added: not once it was closed, or the model has failed as a whole."""
        return not self._is_closing

    @property
    def steps(self) -> int:
        """Number of steps run so far."""
        return self._scheduler.steps

    @property
    def state_bytes(self) -> int:
        """Bytes of memory that the states of all texts take now."""
        return self._stepper.state_bytes

    @property
    def counts(self) -> EngineCounts:
        """Numbers of texts, steps and bytes now; cheap, and callable from any thread."""
        active, finished, tally = self._scheduler.active_count, self._finished, self._scheduler.tally
        return EngineCounts(
            max(self._started - active - finished, 0),
            active,
            finished,
            tally.steps,
            tally.rows,
            tally.prompt_bytes,
            tally.generated,
            tally.drafted,
            tally.accepted,
            tally.prefix_hits,
            tally.prefix_misses,
        )

    def submit(
        self,
        prompt: bytes | str,
        settings: GenerationSettings | None = None,
        *,
        answers: int = 1,
        details: int | None = None,
        echo: bool = False,
        **changes: Unpack[BatchSettings],
    ) -> list[Answer]:
        """Start generating what follows a prompt, and return at once.

        prompt: bytes, or str, which is read as UTF-8; may be empty.
        settings: a `GenerationSettings`; None, the default, has the default of each. Only n-grams draft in a batch.
        answers: number of texts that follow the same prompt, which is read once for all; 1 or more, default 1. The seed
            of answer i is `seed` + i.
        details: records the details of each byte, with so many likeliest alternatives, for `Answer.details`; None, the
            default, records none.
        echo: True records those of the prompt's bytes too, for `Answer.prompt_details`; default False.
        changes: any setting of `GenerationSettings`, by its name.

        Raises EdgebltError for arguments out of range, and where the engine is closed.
        """
        pieces = [SimpleQueue[BatchPiece | BatchEnd]() for _ in range(whole_number("answers", answers, 1))]
        deliver = [queue.put for queue in pieces]
        texts = self._start(deliver, prompt, settings, changes, recorded_details(details, echo))
        return [Answer(text, self._cancel, queue) for text, queue in zip(texts, pieces, strict=True)]

    def stream(
        self,
        prompt: bytes | str,
        settings: GenerationSettings | None = None,
        *,
        details: int | None = None,
        echo: bool = False,
        **changes: Unpack[BatchSettings],
    ) -> AsyncAnswer:
        """Start generating what follows a prompt, for `async for` in the event loop that runs now.

        Takes the arguments of `submit` but for `answers`, and raises as it does. Leaving the loop, or cancelling its
        task, cancels the text.
        """
        return self.streams(prompt, settings, details=details, echo=echo, **changes)[0]

    def streams(
        self,
        prompt: bytes | str,
        settings: GenerationSettings | None = None,
        *,
        answers: int = 1,
        details: int | None = None,
        echo: bool = False,
        **changes: Unpack[BatchSettings],
    ) -> list[AsyncAnswer]:
        """Start generating several answers to one prompt, each as `stream` gives one.

        Takes the arguments of `submit`, and raises as it does.
        """
        loop = asyncio.get_running_loop()
        queues = [asyncio.Queue[BatchPiece | BatchEnd]() for _ in range(whole_number("answers", answers, 1))]

        def into(index: int) -> Deliver:
            def deliver(piece: BatchPiece | BatchEnd) -> None:
                try:
                    loop.call_soon_threadsafe(queues[index].put_nowait, piece)
                except RuntimeError:  # the loop was closed: nobody listens
                    texts[index].is_cancelled = True

            return deliver

        deliver = [into(index) for index in range(len(queues))]
        texts = self._start(deliver, prompt, settings, changes, recorded_details(details, echo))
        return [AsyncAnswer(text, self._cancel, queue) for text, queue in zip(texts, queues, strict=True)]

    def close(self) -> None:
        """Cancel all texts, and end the thread after the step under way. Nothing happens a second time."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        if self._thread.ident != get_ident():
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(
        self,
        deliver: Sequence[Deliver],
        prompt: bytes | str,
        settings: GenerationSettings | None,
        changes: BatchSettings,
        recorded: Recorded | None,
    ) -> list[BatchText]:
        data, chosen = as_bytes("prompt", prompt), completed_settings(self._config, settings, **changes)
        check_prompt(self._config, data)
        if self._drafting:
            self._drafting.check(chosen.draft)
        ends, own = self._config.generation.ends, settings_of_answers(chosen, len(deliver))
        taken = [self._counted(take) for take in deliver]
        texts = [BatchText(data, each, ends, take, recorded) for each, take in zip(own, taken, strict=True)]
        texts[0].forks = texts[1:]
        with self._changed:
            if self._is_closing:
                raise EdgebltError("this engine was closed; make another with model.engine()")
            self._joining.append(texts[0])
            self._started += len(texts)
            self._changed.notify()
        return texts

    def _counted(self, deliver: Deliver) -> Deliver:
        """The same, which counts texts that have ended."""

        def counted(piece: BatchPiece | BatchEnd) -> None:
            if isinstance(piece, BatchEnd):
                self._finished += 1
            deliver(piece)

        return counted

    def _cancel(self, text: BatchText) -> None:
        with self._changed:
            text.is_cancelled = True
            self._changed.notify()

    def _run(self) -> None:
        scheduler, error = self._scheduler, None
        try:
            while self._take_in():
                scheduler.step()
        except EdgebltError as failure:
            error = failure
        except BaseException as failure:  # whoever reads an answer must not wait for ever
            error = EdgebltError(f"the engine failed: {failure!r:.200}; make another with model.engine()")
            raise
        finally:
            with self._changed:
                self._is_closing = True
                left, self._joining = self._joining, []
            scheduler.end_all(left, BatchEnd("error", error=error) if error else BatchEnd("cancelled"))

    def _take_in(self) -> bool:
        """Give new texts to the scheduler, waiting for some where it has none. False when the engine closes."""
        with self._changed:
            while not self._is_closing and not self._joining and self._scheduler.is_idle:
                self._changed.wait()
            joining, self._joining = self._joining, []
            for text in joining:
                self._scheduler.add(text)
            return not self._is_closing
