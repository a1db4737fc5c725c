"""The text that follows a prompt, byte by byte, and why it ended."""

from collections.abc import Callable, Generator, Iterator

import numpy as np
from numpy.typing import NDArray

from edgeblt.decoding.details import ByteDetails, DetailRecorder
from edgeblt.decoding.output import TextEnd
from edgeblt.decoding.settings import GenerationSettings, text_output, text_sampler
from edgeblt.decoding.speculation import DraftStatistics, generate_ids
from edgeblt.ids import BOS, OFFSET, decode, encode
from edgeblt.runtime.run_errors import EnoughMemory
from edgeblt.runtime.saved.prefix_cache import PromptReader
from edgeblt.runtime.saved.saved_state import TextState
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
        begin: Callable[[NDArray[np.int64]], PromptReader],
        statistics: DraftStatistics,
        prompt: bytes,
        settings: GenerationSettings,
        ends: tuple[int, ...],
        reading: Callable[[Session], None] | None = None,
        alternatives: int | None = None,
        session: Session | None = None,
    ) -> None:
        """Nothing is computed before the first byte is asked for; `Model.stream` says what the arguments are."""
        self.end: TextEnd | None = None
        self.details: tuple[ByteDetails, ...] = ()
        before = prompt if session is None else decode(session.ids) + prompt
        text = None if session is None or prompt else session.saved_text
        if text and settings.seed not in (None, text.entropy):  # another seed: another text
            text = None
        self._generated = before[len(before) - text.generated :] if text else b""
        self._sampler = text_sampler(settings, ends, before[: len(before) - len(self._generated)])
        if text:
            self._sampler.resume(encode(self._generated).tolist(), text.entropy)
        self._output = text_output(settings, before)
        self._recorder = None if alternatives is None else DetailRecorder(alternatives, ends)
        self._settings, self._statistics, self._reading = settings, statistics, reading
        self._pieces = self._begin(begin, prompt) if session is None else self._continue(session, prompt)

    def __next__(self) -> bytes:
        return next(self._pieces)

    def close(self) -> None:
        """Stop generating; `end` stays None if the text had not ended."""
        self._pieces.close()

    def _begin(self, begin: Callable[[NDArray[np.int64]], PromptReader], prompt: bytes) -> Generator[bytes, None, None]:
        with EnoughMemory("to generate a text"):
            yield from self._generate(begin(np.concatenate([[BOS], encode(prompt)])))

    def _generate(self, reader: PromptReader) -> Generator[bytes, None, None]:
        session, logits = reader.session, self._read(reader)
        ends, plain = self._sampler.ends, self._output.is_plain and self._recorder is None
        for id in self._ids(session, logits):
            if id in ends:
                self.end = TextEnd("eos")
                break
            if plain:
                yield _SINGLE[id - OFFSET]
                continue
            yield from self._given(self._output.take(id - OFFSET))
            if self._output.stop is not None:
                self.end = TextEnd("stop", self._output.stop)
                break
        reader.end()
        if self._output.stop is None:
            yield from self._given(self._output.finish())
        self.end = self.end or TextEnd("constraint" if self._sampler.is_complete else "length")

    def _continue(self, session: Session, prompt: bytes) -> Generator[bytes, None, None]:
        """Generate on a session, which has in the end been fed the prompt and the bytes yielded, and no more."""
        with EnoughMemory("to generate a text"):
            start, yielded = session.position, bytearray()
            ids = encode(prompt) if start else np.concatenate([[BOS], encode(prompt)])
            read_before = ids[:0]
            if not len(ids):  # the last id is fed again for its logits
                start, read_before = start - 1, session.ids[-1:]
                ids = read_before
                session.rollback(start)
            pieces = self._generate(PromptReader(session, ids))
            try:
                for piece in pieces:
                    yielded += piece
                    yield piece
            finally:
                pieces.close()
                was_read = session.position >= start + len(ids)
                text = np.concatenate([ids, encode(bytes(yielded))]) if was_read else read_before
                session.rollback(min(session.position, start + len(text)))
                if session.position < start + len(text):
                    session.feed(text[session.position - start :])
                if was_read:
                    session.note_text(TextState(len(self._generated) + len(yielded), self._sampler.entropy))

    def _ids(self, session: Session, logits: NDArray[np.float32]) -> Iterator[int]:
        most = self._settings.max_new_bytes
        return generate_ids(session, logits, self._sampler, self._statistics, most, details=self._recorder)

    def _read(self, reader: PromptReader) -> NDArray[np.float32]:
        """Logits after the prompt's ids."""
        logits = np.empty(0, np.float32)
        for chunk in reader.run():
            logits = chunk.logits[-1]
            if self._recorder:
                self._recorder.read(chunk)
            if self._reading:
                self._reading(reader.session)
        return logits

    def _given(self, pieces: list[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            if self._recorder:
                self.details = self._recorder.take(len(piece))
            yield piece
