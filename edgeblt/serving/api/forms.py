"""Documents of answers, in the forms of completions and of chats."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeblt.serving.api.requests import TextRequest
from edgeblt.serving.api.texts import AnswerText, chat_logprobs, completion_logprobs, detail_json
from edgeblt.serving.served import ServedModel

BASE_MODEL = "this is a base model, which continues text; it was not trained to follow instructions"
_FINISH = {"stop": "stop", "eos": "stop", "constraint": "stop", "length": "length", "time": "length"}


@dataclass
class Usage:
    """Bytes of prompts and of answers, which clients read as tokens."""

    prompt: int
    generated: int = 0

    @property
    def document(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.generated,
            "total_tokens": self.prompt + self.generated,
            "unit": "bytes",
        }


@dataclass(frozen=True)
class AnswerForm:
    """The form of the answers to one request."""

    served: ServedModel
    request: TextRequest
    is_chat: bool
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def answer(self, texts: Sequence[AnswerText], reasons: Sequence[str], usage: Usage) -> dict[str, Any]:
        """The whole answer. reasons: how each text ended."""
        choices = []
        for index, (text, reason) in enumerate(zip(texts, reasons, strict=True)):
            said: dict[str, Any] = {"text": text.text}
            if self.is_chat:
                said = {"message": {"role": "assistant", "content": text.text, "refusal": None}}
            choices.append(self._choice(index, said, text, reason))
        return self._document("chat.completion" if self.is_chat else "text_completion", choices, usage)

    def opening(self, index: int) -> dict[str, Any]:
        """The first chunk of an answer in a chat."""
        return self._chunk([self._choice(index, {"delta": {"role": "assistant", "content": ""}}, AnswerText(""), None)])

    def part(self, index: int, text: AnswerText, reason: str | None = None) -> dict[str, Any]:
        """A chunk. reason: how the answer ended, where it has."""
        said: dict[str, Any] = {"text": text.text}
        if self.is_chat:
            said = {"delta": {"content": text.text} if text.text or not reason else {}}
        return self._chunk([self._choice(index, said, text, reason)])

    def usage(self, usage: Usage) -> dict[str, Any]:
        """The chunk after the last, with the usage."""
        return self._chunk([], usage)

    def _choice(self, index: int, said: dict[str, Any], text: AnswerText, reason: str | None) -> dict[str, Any]:
        request, logprobs = self.request, None
        if request.logprobs is not None:
            logprobs = (chat_logprobs if self.is_chat else completion_logprobs)(text, request.logprobs)
        choice: dict[str, Any] = {"index": index, **said, "logprobs": logprobs}
        choice["finish_reason"] = _FINISH[reason] if reason else None
        if reason:
            choice["end_reason"] = reason
        if request.details is not None:
            choice["edgeblt"] = [detail_json(each, request.details) for each in text.details]
        return choice

    def _chunk(self, choices: list[dict[str, Any]], usage: Usage | None = None) -> dict[str, Any]:
        return self._document("chat.completion.chunk" if self.is_chat else "text_completion", choices, usage)

    def _document(self, kind: str, choices: list[dict[str, Any]], usage: Usage | None) -> dict[str, Any]:
        document: dict[str, Any] = {
            "id": f"{'chatcmpl' if self.is_chat else 'cmpl'}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.served.name,
            "system_fingerprint": self.served.fingerprint,
            "choices": choices,
        }
        if self.is_chat:
            document["note"] = BASE_MODEL
        if usage:
            document["usage"] = usage.document
        return document
