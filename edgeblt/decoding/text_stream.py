"""The text that follows a prompt, byte by byte, and why it ended."""

from collections.abc import Callable, Generator, Iterator

import numpy as np
from numpy.typing import NDArray

from edgeblt.decoding.details import ByteDetails, DetailRecorder
from edgeblt.decoding.output import TextEnd
from edgeblt.decoding.settings import GenerationSettings, text_output, text_sampler
from edgeblt.decoding.speculation import DraftStatistics, generate_ids
from edgeblt.ids import BOS, OFFSET, encode
from edgeblt.runtime.run_errors import EnoughMemory
from edgeblt.runtime.session import Session

_SINGLE = [bytes([byte]) for byte in range(256)]


class TextStream(Iterator[bytes]):
    """An iterator over the bytes that follow a prompt, made by `Model.stream`.

    It yields single bytes, or whole characters with the setting `utf8`; bytes that may still belong to a stop sequence
    are held back. After the last, `end` says why the text ended.

    end: a `TextEnd`; None before the end.
    details: tuple of `ByteDetails`, one for each byte of the piece yielded last; empty unless they were asked for.
    """

    def __init__(
        self,
        open_session: Callable[[], Session],
        statistics: Callable[[str], DraftStatistics],
        prompt: bytes,
        settings: GenerationSettings,
        ends: tuple[int, ...],
        reading: Callable[[Session], None] | None = None,
        alternatives: int | None = None,
    ) -> None:
        """Nothing is computed before the first byte is asked for; `Model.stream` says what the arguments are."""
        self.end: TextEnd | None = None
        self.details: tuple[ByteDetails, ...] = ()
        self._sampler = text_sampler(settings, ends, prompt)
        self._output = text_output(settings, prompt)
        self._recorder = None if alternatives is None else DetailRecorder(alternatives, ends)
        self._settings, self._reading = settings, reading
        self._pieces = self._generate(open_session, statistics, prompt)

    def __next__(self) -> bytes:
        return next(self._pieces)

    def close(self) -> None:
        """Stop generating; `end` stays None if the text had not ended."""
        self._pieces.close()

    def _generate(
        self, open_session: Callable[[], Session], statistics: Callable[[str], DraftStatistics], prompt: bytes
    ) -> Generator[bytes, None, None]:
        with EnoughMemory("to generate a text"):
            session = open_session()
            logits = self._read(session, prompt)
            most = self._settings.max_new_bytes
            chosen = generate_ids(
                session, logits, self._sampler, statistics(self._settings.draft), most, None, self._recorder
            )
            ends, plain = self._sampler.ends, self._output.is_plain and self._recorder is None
            for id in chosen:
                if id in ends:
                    self.end = TextEnd("eos")
                    break
                if plain:
                    yield _SINGLE[id - OFFSET]
                    continue
                yield from self._given(self._output.take(id - OFFSET))
                if self._output.stop is not None:
                    self.end = TextEnd("stop", self._output.stop)
                    return
            yield from self._given(self._output.finish())
            self.end = self.end or TextEnd("constraint" if self._sampler.is_complete else "length")

    def _read(self, session: Session, prompt: bytes) -> NDArray[np.float32]:
        """Logits after the prompt."""
        logits = np.empty(0, np.float32)
        for chunk in session.run(np.concatenate([[BOS], encode(prompt)])):
            logits = chunk.logits[-1]
            if self._recorder:
                self._recorder.read(chunk)
            if self._reading:
                self._reading(session)
        return logits

    def _given(self, pieces: list[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            if self._recorder:
                self.details = self._recorder.take(len(piece))
            yield piece
