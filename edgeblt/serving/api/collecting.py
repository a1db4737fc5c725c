"""Answers to one request as they grow, from what a run gives."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from edgeblt.serving.api.forms import Usage
from edgeblt.serving.api.requests import TextRequest
from edgeblt.serving.api.texts import AnswerText, TextBuilder, joined
from edgeblt.serving.runs import AnswerEnd, AnswerPiece, Event, Job


def jobs_of(request: TextRequest) -> list[Job]:
    """Jobs of a request. Where only the prompt's scores are wanted, a byte is generated for nothing."""
    settings = request.settings
    if request.scores_only:
        settings = replace(settings, max_new_bytes=1)
    return [
        Job(prompt, settings, request.n, request.alternatives, request.records_prompt) for prompt in request.prompts
    ]


class Collector:
    """Texts of all answers, answer by answer; the answers to one prompt come one after the other.

    reasons: why each ended; None where it has not.
    """

    def __init__(self, request: TextRequest) -> None:
        count = len(request.prompts) * request.n
        self.usage = Usage(sum(map(len, request.prompts)))
        self.reasons: list[str | None] = [None] * count
        self.has_begun = False
        self._request = request
        self._builders = [TextBuilder() for _ in range(count)]
        self._echoed = [not request.echo] * count

    def take(self, events: Iterable[Event]) -> list[tuple[int, AnswerText, str | None]]:
        """New parts: the answer's index, the text, and why it ended where it has."""
        parts: dict[int, list[AnswerText]] = {}
        ended = dict[int, str]()
        for event in events:
            own = parts.setdefault(event.index, [])
            if isinstance(event, AnswerPiece):
                own += self._piece(event)
            else:
                own += self._end(event)
                ended[event.index] = self.reasons[event.index] or ""
        return [
            (index, text, ended.get(index))
            for index, several in parts.items()
            if (text := joined(several)).text or text.details or index in ended
        ]

    def cut(self, reason: str) -> list[tuple[int, AnswerText, str | None]]:
        """Ends all answers that have not ended."""
        left = [index for index, known in enumerate(self.reasons) if known is None]
        for index in left:
            self.reasons[index] = reason
        return [(index, joined([*self._echo(index), self._builders[index].finish()]), reason) for index in left]

    def _piece(self, piece: AnswerPiece) -> list[AnswerText]:
        self.has_begun = True
        texts = self._echo(piece.index, piece)
        if self._request.scores_only or not piece.data:
            return texts
        self.usage.generated += len(piece.data)
        return [*texts, self._builders[piece.index].take(piece.data, piece.details)]

    def _end(self, event: AnswerEnd) -> list[AnswerText]:
        self.reasons[event.index] = "length" if self._request.scores_only else event.end.reason
        return [*self._echo(event.index), self._builders[event.index].finish()]

    def _echo(self, index: int, piece: AnswerPiece | None = None) -> list[AnswerText]:
        """The prompt, at the beginning of an answer that is to begin with it."""
        if self._echoed[index]:
            return []
        self._echoed[index] = True
        prompt = self._request.prompts[index // self._request.n]
        details = piece.prompt_details if piece else ()
        return [self._builders[index].take(prompt, details if len(details) == len(prompt) else ())]


def whole_texts(count: int, parts: Sequence[tuple[int, AnswerText, str | None]]) -> list[AnswerText]:
    """The text of each answer, from its parts."""
    return [joined([text for index, text, _ in parts if index == number]) for number in range(count)]
