"""Text of an answer as its bytes come: whole characters, and where in the text each byte with details lies."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgeblt.decoding.details import ByteDetails

END = "<|end|>"  # names the end of the text beside bytes
_LOWEST = -9999.0  # stands for -inf, which JSON lacks


@dataclass(frozen=True)
class AnswerText:
    """A part of an answer.

    offsets: for each entry of `details` the character of the answer that its byte belongs to.
    """

    text: str
    details: tuple[ByteDetails, ...] = ()
    offsets: tuple[int, ...] = ()


class TextBuilder:
    """Turns the bytes of one answer into text, holding back those of characters that are not whole.

    Bytes that are not UTF-8 become U+FFFD.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held: list[ByteDetails] = []
        self._length = 0  # characters given so far

    def take(self, data: bytes, details: Sequence[ByteDetails] = ()) -> AnswerText:
        """The text that is certain with these bytes; `details` are none, or one for each."""
        if not details:
            return self._counted(self._decoder.decode(data))
        text, shown, offsets = "", list[ByteDetails](), list[int]()
        for byte, each in zip(data, details, strict=True):
            self._held.append(each)
            more = self._decoder.decode(bytes([byte]))
            if more:
                done = max(len(self._held) - len(self._decoder.getstate()[0]), 0)
                offsets += [*[self._length] * (done - 1), self._length + len(more) - 1]
                shown += self._held[:done]
                del self._held[:done]
                self._length += len(more)
                text += more
        return AnswerText(text, tuple(shown), tuple(offsets))

    def finish(self) -> AnswerText:
        """The rest, at the end of the answer."""
        offsets, held = (self._length,) * len(self._held), tuple(self._held)
        text = self._counted(self._decoder.decode(b"", final=True)).text
        return AnswerText(text, held, offsets)

    def _counted(self, text: str) -> AnswerText:
        self._length += len(text)
        return AnswerText(text)


def joined(parts: Sequence[AnswerText]) -> AnswerText:
    """Several parts of an answer as one."""
    return AnswerText(
        "".join(part.text for part in parts),
        tuple(each for part in parts for each in part.details),
        tuple(offset for part in parts for offset in part.offsets),
    )


def token(byte: bytes) -> str:
    """A byte as clients name tokens: the character where it is ASCII, else `bytes:\\xNN`."""
    if not byte:
        return END
    return byte.decode() if byte[0] < 128 else f"bytes:\\x{byte[0]:02x}"


def finite(logprob: float) -> float:
    """A log-probability that JSON can hold."""
    return max(logprob, _LOWEST)


def detail_json(each: ByteDetails, alternatives: int) -> dict[str, Any]:
    """Details of a byte in the form of this server; null stands for the end of the text."""
    return {
        "byte": each.byte[0],
        "logprob": finite(each.logprob),
        "entropy": each.entropy,
        "starts_patch": each.starts_patch,
        "drafted": each.origin == "drafted",
        "forced": each.origin == "forced",
        "alternatives": alternatives_json(each, alternatives),
    }


def alternatives_json(each: ByteDetails, count: int) -> list[list[Any]]:
    """The likeliest bytes, null for the end of the text, each with its log-probability."""
    return [[byte[0] if byte else None, finite(logprob)] for byte, logprob in each.alternatives[:count]]


def completion_logprobs(text: AnswerText, count: int) -> dict[str, Any]:
    """Log-probabilities in the form of completions."""
    return {
        "tokens": [token(each.byte) for each in text.details],
        "token_logprobs": [finite(each.logprob) for each in text.details],
        "top_logprobs": [
            {token(byte): finite(logprob) for byte, logprob in each.alternatives[:count]} for each in text.details
        ],
        "text_offset": list(text.offsets),
    }


def chat_logprobs(text: AnswerText, count: int) -> dict[str, Any]:
    """Log-probabilities in the form of chats."""
    content = []
    for each in text.details:
        top = [_chat_token(byte, logprob) for byte, logprob in each.alternatives[:count]]
        content.append({**_chat_token(each.byte, each.logprob), "top_logprobs": top})
    return {"content": content, "refusal": None}


def _chat_token(byte: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token(byte), "logprob": finite(logprob), "bytes": list(byte)}
