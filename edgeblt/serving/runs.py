"""Texts of one request on their way through slots and engine."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from edgeblt.batching.answers import AsyncAnswer
from edgeblt.batching.engine import Engine
from edgeblt.batching.text import BatchEnd
from edgeblt.decoding.details import ByteDetails
from edgeblt.decoding.settings import GenerationSettings
from edgeblt.errors import EdgebltError
from edgeblt.serving.api.refusals import RefusedError, ending
from edgeblt.serving.served import ServedModel

GAP_S = 0.01  # seconds from one event of a stream to the next, at least: an event costs more than a byte of some models
StopReason = Literal["time", "gone", "draining"]


@dataclass(frozen=True)
class Job:
    """Answers to one prompt, which is read once for all of them.

    alternatives: as `Engine.submit` takes `details`.
    """

    prompt: bytes
    settings: GenerationSettings
    answers: int
    alternatives: int | None = None
    with_prompt: bool = False


@dataclass(frozen=True)
class AnswerPiece:
    """Bytes of an answer that are certain, with their details; in the first, those of the prompt come too.

    index: number of the answer, over all jobs.
    """

    index: int
    data: bytes
    details: tuple[ByteDetails, ...]
    prompt_details: tuple[ByteDetails, ...] = ()


@dataclass(frozen=True)
class AnswerEnd:
    """The end of an answer."""

    index: int
    end: BatchEnd


Event = AnswerPiece | AnswerEnd


class RequestRun:
    """Runs the jobs of one request, and gives what comes of them as it comes.

    stopped: why it was stopped before its answers had ended; None where it was not.
    first_s: seconds until the first bytes; None before.
    """

    def __init__(
        self,
        served: ServedModel,
        jobs: Sequence[Job],
        took: Callable[[float], None] | None = None,
        engine: Engine | None = None,
    ) -> None:
        """Start nothing yet; `events` does.

        took: called with the time from each piece of an answer to the next, in seconds.
        engine: an engine in place of the model's own.
        """
        self.stopped: StopReason | None = None
        self.first_s: float | None = None
        self._served, self._jobs, self._took, self._engine = served, jobs, took, engine or served.engine
        self._count = sum(job.answers for job in jobs)
        self._started, self._events, self._wake = time.monotonic(), list[Event](), asyncio.Event()
        self._refusal: RefusedError | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def stop(self, reason: StopReason) -> None:
        """End all that has not ended; what came until now is still given."""
        if self.stopped is None:
            self.stopped = reason
            for task in self._tasks:
                task.cancel()
            self._wake.set()

    async def events(self) -> AsyncGenerator[list[Event]]:
        """Events since the last time, until all have ended or the run is stopped.

        Raises RefusedError where there is no room for the jobs, at the beginning, or the model fails.
        """
        self._served.slots.admit(self._count)
        first = 0
        for job in self._jobs:
            self._tasks.append(asyncio.ensure_future(self._run(job, first)))
            first += job.answers
        left = self._count
        try:
            while left and not (self.stopped and not self._events):
                await self._wake.wait()
                self._wake.clear()
                if self._refusal:
                    raise self._refusal
                events, self._events = self._events, []
                left -= sum(isinstance(event, AnswerEnd) for event in events)
                if events:
                    yield events
                    if left and not self.stopped:
                        await asyncio.sleep(GAP_S)
        finally:
            for task in self._tasks:
                task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*self._tasks, return_exceptions=True)
            self._served.slots.leave(self._count)

    async def _run(self, job: Job, first: int) -> None:
        try:
            async with self._served.slots.taken(job.answers):
                answers = self._engine.streams(
                    job.prompt, job.settings, answers=job.answers, details=job.alternatives, echo=job.with_prompt
                )
                pumps = [asyncio.ensure_future(self._pump(*each)) for each in enumerate(answers, first)]
                try:
                    await asyncio.gather(*pumps)
                finally:
                    for pump, answer in zip(pumps, answers, strict=True):
                        pump.cancel()
                        answer.cancel()
        except RefusedError as refusal:
            self._fail(refusal)
        except EdgebltError as error:  # the engine was closed, or the settings do not fit this model
            self._fail(RefusedError(500, str(error)))

    async def _pump(self, index: int, answer: AsyncAnswer) -> None:
        is_first, before = True, 0.0
        try:
            async for data in answer:
                now = time.monotonic()
                if self.first_s is None:
                    self.first_s = now - self._started
                if self._took and not is_first:
                    self._took(now - before)
                before = now
                prompt = answer.prompt_details if is_first else ()
                self._add(AnswerPiece(index, data, answer.details, prompt))
                is_first = False
        except EdgebltError as error:
            constrained = self._jobs[0].settings.constraint is not None
            self._fail(RefusedError(400 if constrained else 500, f"the text failed: {error}"))
        else:
            assert answer.end
            if is_first and answer.prompt_details:
                self._add(AnswerPiece(index, b"", (), answer.prompt_details))
            if answer.end.reason == "cancelled":
                self._fail(ending())
            self._add(AnswerEnd(index, answer.end))

    def _add(self, event: Event) -> None:
        self._events.append(event)
        self._wake.set()

    def _fail(self, refusal: RefusedError) -> None:
        self._refusal = self._refusal or refusal
        self._wake.set()
