"""An engine: one thread that owns a model's sequences, and answers that get their bytes through queues."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from queue import SimpleQueue
from threading import Condition, Thread, get_ident
from types import TracebackType
from typing import Self, Unpack

from edgeblt.arguments import as_bytes, whole_number
from edgeblt.batching.scheduler import Scheduler
from edgeblt.batching.settings import BatchSettings, completed_settings, settings_of_answers
from edgeblt.batching.text import BatchEnd, BatchText, Deliver
from edgeblt.bundle.config import ModelConfig
from edgeblt.decoding.settings import GenerationSettings
from edgeblt.errors import EdgebltError
from edgeblt.runtime.batch.stepper import Stepper


class Answer:
    """The bytes that an engine generates for one prompt: iterate over them, in any thread.

    end: how the text ended, a `BatchEnd`; None before its last byte was read.
    """

    def __init__(self, cancel: "Callable[[], None]", pieces: "SimpleQueue[bytes | BatchEnd]") -> None:
        self.end: BatchEnd | None = None
        self._cancel, self._pieces = cancel, pieces

    def __iter__(self) -> Iterator[bytes]:
        """The bytes from here on, each as soon as it is there. Raises EdgebltError where the model failed on it."""
        while self.end is None:
            piece = self._pieces.get()
            if isinstance(piece, bytes):
                yield piece
            else:
                self.end = piece
        if self.end.error:
            raise self.end.error

    def read(self) -> bytes:
        """All bytes from here on, when the text has ended. Raises as iterating does."""
        return b"".join(self)

    def cancel(self) -> None:
        """End the text: at most the step under way still gives it a byte."""
        self._cancel()


class Engine:
    """Generates many texts at once on one model, by `Model.engine`; a context manager.

    Texts may be added at any time, from any thread; each joins at the next step. They get the same bytes as alone.
    """

    def __init__(self, config: ModelConfig, stepper: Stepper) -> None:
        self._config, self._stepper, self._scheduler = config, stepper, Scheduler(stepper)
        self._changed = Condition()
        self._joining: list[BatchText] = []
        self._is_closing = False
        self._thread = Thread(target=self._run, name="edgeblt-engine", daemon=True)
        self._thread.start()

    @property
    def is_batched(self) -> bool:
        """Whether weights are read once for all texts of a step. False without the native library and on a GPU."""
        return self._stepper.is_batched

    @property
    def steps(self) -> int:
        """Number of steps run so far."""
        return self._scheduler.steps

    @property
    def state_bytes(self) -> int:
        """Bytes of memory that the states of all texts take now."""
        return self._stepper.state_bytes

    def submit(
        self,
        prompt: bytes | str,
        settings: GenerationSettings | None = None,
        *,
        answers: int = 1,
        **changes: Unpack[BatchSettings],
    ) -> list[Answer]:
        """Start generating what follows a prompt, and return at once.

        prompt: bytes, or str, which is read as UTF-8; may be empty.
        settings: a `GenerationSettings`, whose `draft` has no effect here; None, the default, has the default of each.
        answers: number of texts that follow the same prompt, which is read once for all; 1 or more, default 1. The seed
            of answer i is `seed` + i.
        changes: any setting of `GenerationSettings` but `draft`, by its name.

        Raises EdgebltError for arguments out of range, and where the engine is closed.
        """
        pieces = [SimpleQueue[bytes | BatchEnd]() for _ in range(whole_number("answers", answers, 1))]
        texts = self._start([queue.put for queue in pieces], prompt, settings, changes)
        return [Answer(partial(self._cancel, text), queue) for text, queue in zip(texts, pieces, strict=True)]

    async def stream(
        self,
        prompt: bytes | str,
        settings: GenerationSettings | None = None,
        **changes: Unpack[BatchSettings],
    ) -> AsyncIterator[bytes]:
        """Generate as `Model.stream` does, for `async for`; leaving the loop, or cancelling its task, cancels the text.

        Takes the arguments of `submit` but for `answers`, and raises as it does, and where the model fails.
        """
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[bytes | BatchEnd]()

        def deliver(piece: bytes | BatchEnd) -> None:
            try:
                loop.call_soon_threadsafe(pieces.put_nowait, piece)
            except RuntimeError:  # the loop was closed: nobody listens
                text.is_cancelled = True

        (text,) = self._start([deliver], prompt, settings, changes)
        try:
            while isinstance(piece := await pieces.get(), bytes):
                yield piece
            if piece.error:
                raise piece.error
        finally:
            self._cancel(text)

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
    ) -> list[BatchText]:
        data, chosen = as_bytes("prompt", prompt), completed_settings(self._config, settings, **changes)
        ends, own = self._config.generation.ends, settings_of_answers(chosen, len(deliver))
        texts = [BatchText(data, each, ends, take) for each, take in zip(own, deliver, strict=True)]
        texts[0].forks = texts[1:]
        with self._changed:
            if self._is_closing:
                raise EdgebltError("this engine was closed; make another with model.engine()")
            self._joining.append(texts[0])
            self._changed.notify()
        return texts

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
