"""Documents of the tasks in this folder, made from the held-out texts that come with edgeblt: no downloads."""

import re
from collections.abc import Iterator
from typing import Any

from datasets import Dataset

from edgeblt.measure.texts import held_out_text

_CONTEXT, _CHOICE, _STEP, _CHOICES = 300, 24, 64, 4  # bytes, bytes, bytes from one question to the next, answers
_LONG_WORD = 7  # letters, at least


def next_words(**_: Any) -> dict[str, Dataset]:
    """Which of four passages of 24 letters follows 300 letters of prose? The others stand elsewhere in the text."""
    return _test_split(_questions(held_out_text("prose").decode()))


def texts(**_: Any) -> dict[str, Dataset]:
    """Prose, Python and prose with typos, each in one piece."""
    return _test_split({"text": held_out_text(name).decode()} for name in ("prose", "code", "typos"))


def rest_of_words(**_: Any) -> dict[str, Dataset]:
    """Prose that breaks off in the middle of a long word: its other half is to be generated."""
    return _test_split(_halves(held_out_text("prose").decode()))


def _questions(text: str) -> Iterator[dict[str, Any]]:
    places = [text.index(" ", start) for start in range(_CONTEXT, len(text) - 2 * _CHOICE, _STEP)]
    for number, place in enumerate(places):
        others = [places[(number + offset * len(places) // _CHOICES) % len(places)] for offset in range(_CHOICES)]
        gold = number % _CHOICES
        others[0], others[gold] = others[gold], others[0]  # the right one stands at each number equally often
        choices = [text[other : other + _CHOICE] for other in others]
        yield {"context": text[place - _CONTEXT : place], "choices": choices, "gold": gold}


def _halves(text: str) -> Iterator[dict[str, Any]]:
    for word in re.finditer(rf"\b[a-z]{{{_LONG_WORD},}}\b", text):
        middle = (word.start() + word.end()) // 2
        if middle >= _CONTEXT:
            yield {"text": text[middle - _CONTEXT : middle], "rest": text[middle : word.end()]}


def _test_split(documents: Any) -> dict[str, Dataset]:
    return {"test": Dataset.from_list(list(documents))}
