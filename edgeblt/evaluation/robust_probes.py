"""Probes of spelling made from the words of a text, of the kinds of CUTE (Edman et al., arXiv:2409.15452).

A probe is a prompt of two solved examples and a question, with a right and a wrong continuation that are as long in
bytes and have the same characters where the task allows it, so that neither length nor frequency decides.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from edgeblt.measure.noise import uniform_draws

_WORD = re.compile(r"[^\W\d_]+")
_SHORTEST, _LONGEST = 4, 9  # characters of a word
_EXAMPLES = 2
_MOST_TRIES = 20


@dataclass(frozen=True)
class Probe:
    """A prompt, and a right and a wrong continuation of as many bytes."""

    kind: str
    prompt: bytes
    right: bytes
    wrong: bytes


@dataclass(frozen=True)
class _Task:
    """A question about a word, its right answer and a wrong one."""

    question: str
    right: str
    wrong: str


class _Draws:
    """Uniform choices from one stream."""

    def __init__(self, seed: Sequence[int]) -> None:
        self._seed, self._block = list(seed), 0
        self._next: Iterator[float] = iter(())

    def below(self, count: int) -> int:
        """A number from 0 to count - 1."""
        draw = next(self._next, None)
        if draw is None:
            self._next = iter(uniform_draws(256, [*self._seed, self._block]).tolist())
            self._block += 1
            draw = next(self._next)
        return int(draw * count)

    def two(self, count: int) -> tuple[int, int]:
        """Two different numbers from 0 to count - 1."""
        first, second = self.below(count), self.below(count - 1)
        return first, second + (second >= first)

    def choice(self, values: Sequence[str]) -> str:
        return values[self.below(len(values))]


def words_of(data: bytes) -> tuple[str, ...]:
    """Distinct words of four to nine letters, three of them different, in lower case, in the order of the text."""
    words = (word.lower() for word in _WORD.findall(data.decode("utf-8", "ignore")))
    return tuple(dict.fromkeys(word for word in words if _SHORTEST <= len(word) <= _LONGEST and len(set(word)) >= 3))


def spelling_probes(words: Sequence[str], kind: str, count: int, seed: Sequence[int]) -> list[Probe]:
    """Up to `count` probes of one kind, each on another word; fewer where the words do not suffice.

    kind: a name in `PROBE_KINDS`.
    seed: the same words, kind and seed give the same probes.
    """
    make, draws = PROBE_KINDS[kind], _Draws([*seed, list(PROBE_KINDS).index(kind)])
    letters, waiting = "".join(words), list(words)
    tasks: list[_Task] = []
    while waiting and len(tasks) < count + _EXAMPLES:
        word = waiting.pop(draws.below(len(waiting)))
        tried = (make(word, letters, draws) for _ in range(_MOST_TRIES))
        tasks += [task for task in tried if task and _is_fair(task)][:1]
    examples = "".join(f"{task.question}{task.right}\n" for task in tasks[:_EXAMPLES])
    return [
        Probe(kind, (examples + task.question).encode(), f"{task.right}\n".encode(), f"{task.wrong}\n".encode())
        for task in tasks[_EXAMPLES:]
    ]


def _is_fair(task: _Task) -> bool:
    return task.right != task.wrong and len(task.right.encode()) == len(task.wrong.encode())


def _spelling(word: str, letters: str, draws: _Draws) -> _Task | None:
    """Letters of a word one by one; wrong: two neighbours have changed places."""
    place = draws.below(len(word) - 1)
    wrong = word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    return _Task(f'The word "{word}" is spelled: ', " ".join(word), " ".join(wrong))


def _contains(word: str, letters: str, draws: _Draws) -> _Task | None:
    """A letter of a word; wrong: another letter, drawn as often as it occurs, that the word lacks."""
    absent = _absent(word, letters, draws)
    return None if absent is None else _Task(f'A letter in the word "{word}" is: ', draws.choice(word), absent)


def _insert(word: str, letters: str, draws: _Draws) -> _Task | None:
    """A letter put behind another; wrong: behind a third."""
    right, wrong = draws.two(len(word))
    added = _absent(word, letters, draws)
    if added is None or word.count(word[right]) > 1:
        return None
    question = f'Put "{added}" after "{word[right]}" in "{word}": '
    return _Task(question, *(word[: place + 1] + added + word[place + 1 :] for place in (right, wrong)))


def _delete(word: str, letters: str, draws: _Draws) -> _Task | None:
    """A letter left out; wrong: another."""
    right, wrong = draws.two(len(word))
    if word.count(word[right]) > 1:
        return None
    question = f'Delete "{word[right]}" from "{word}": '
    return _Task(question, *(word[:place] + word[place + 1 :] for place in (right, wrong)))


def _substitute(word: str, letters: str, draws: _Draws) -> _Task | None:
    """A letter replaced; wrong: another is."""
    right, wrong = draws.two(len(word))
    new = _absent(word, letters, draws)
    if new is None or word.count(word[right]) > 1:
        return None
    question = f'Replace "{word[right]}" with "{new}" in "{word}": '
    return _Task(question, *(word[:place] + new + word[place + 1 :] for place in (right, wrong)))


def _swap(word: str, letters: str, draws: _Draws) -> _Task | None:
    """Two letters that change places; wrong: two others do."""
    (first, second), others = draws.two(len(word)), draws.two(len(word))
    if word.count(word[first]) > 1 or word.count(word[second]) > 1:
        return None
    question = f'Swap "{word[first]}" and "{word[second]}" in "{word}": '
    return _Task(question, _swapped(word, first, second), _swapped(word, *others))


def _swapped(word: str, first: int, second: int) -> str:
    characters = list(word)
    characters[first], characters[second] = characters[second], characters[first]
    return "".join(characters)


def _absent(word: str, letters: str, draws: _Draws) -> str | None:
    """A letter that the word lacks, drawn from all words' letters; None where none was found."""
    tried = [draws.choice(letters) for _ in range(_MOST_TRIES)]
    return next((letter for letter in tried if letter not in word), None)


PROBE_KINDS: Mapping[str, Callable[[str, str, _Draws], _Task | None]] = MappingProxyType(
    {
        "spelling": _spelling,
        "contains": _contains,
        "insert": _insert,
        "delete": _delete,
        "substitute": _substitute,
        "swap": _swap,
    }
)
