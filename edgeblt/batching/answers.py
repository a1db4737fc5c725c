"""Answers of an engine: what it generates for one prompt, as it comes."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from queue import SimpleQueue
from typing import Self

from edgeblt.batching.text import BatchEnd, BatchPiece, BatchText
from edgeblt.decoding.details import ByteDetails


class AnyAnswer:
    """The bytes that an engine generates for one prompt: an `Answer`, or an `AsyncAnswer` for `async for`.

    end: how the text ended, a `BatchEnd`; None before its last byte was read.
    details: tuple of `ByteDetails`, one for each byte of the piece read last; empty unless they were asked for.
    """

    def __init__(self, text: BatchText, cancel: Callable[[BatchText], None]) -> None:
        self.end: BatchEnd | None = None
        self.details: tuple[ByteDetails, ...] = ()
        self._text, self._cancel = text, cancel

    @property
    def prompt_details(self) -> tuple[ByteDetails, ...]:
        """Details of the prompt's bytes, if they were asked for; all are there when the first piece is."""
        return tuple(self._text.prompt_details)

    def cancel(self) -> None:
        """End the text: at most the step under way still gives it a byte."""
        self._cancel(self._text)


class Answer(AnyAnswer):
    """The answer that `Engine.submit` gives: iterate over it, in any thread."""

    def __init__(
        self, text: BatchText, cancel: Callable[[BatchText], None], pieces: "SimpleQueue[BatchPiece | BatchEnd]"
    ) -> None:
        super().__init__(text, cancel)
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        """The bytes from here on, each as soon as it is there. Raises EdgebltError where the model failed on it."""
        while self.end is None:
            piece = self._pieces.get()
            if isinstance(piece, BatchPiece):
                self.details = piece.details
                yield piece.data
            else:
                self.end = piece
        if self.end.error:
            raise self.end.error

    def read(self) -> bytes:
        """All bytes from here on, when the text has ended. Raises as iterating does."""
        return b"".join(self)


class AsyncAnswer(AnyAnswer, AsyncIterator[bytes]):
    """The answer that `Engine.stream` gives; leaving its `async for`, or cancelling the task, cancels the text."""

    def __init__(
        self, text: BatchText, cancel: Callable[[BatchText], None], pieces: "asyncio.Queue[BatchPiece | BatchEnd]"
    ) -> None:
        super().__init__(text, cancel)
        self._pieces = pieces

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """The next bytes, as soon as they are there. Raises EdgebltError where the model failed on the text."""
        if self.end is None:
            try:
                piece = await self._pieces.get()
            except BaseException:
                self.cancel()
                raise
            if isinstance(piece, BatchPiece):
                self.details = piece.details
                return piece.data
            self.end = piece
            if piece.error:
                raise piece.error
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Cancel the text."""
        self.cancel()

    def __del__(self) -> None:
        if self.end is None:
            self.cancel()
