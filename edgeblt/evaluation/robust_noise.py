"""Noise on the characters of a text, of the kinds that the BLT paper evaluates (arXiv:2412.09871, section 6.1).

Every function is pure: the same text, strength and seed give the same text on every machine. Bytes that are no UTF-8
stand for themselves. `edgeblt.measure.noise` has noise on bytes.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from edgeblt.measure.noise import uniform_draws

_WORD = re.compile(r"\S+")
_MOST_REPEATS = 4
Seed = int | Sequence[int]


class CharacterNoise(Protocol):
    def __call__(self, text: str, strength: float, seed: Seed) -> str: ...


def drop(text: str, strength: float, seed: Seed) -> str:
    """Drops each character with probability `strength`; keeps the first where all would be dropped."""
    draws = uniform_draws(len(text), seed)
    kept = "".join(character for character, draw in zip(text, draws, strict=True) if draw >= strength)
    return kept or text[:1]


def repeat(text: str, strength: float, seed: Seed) -> str:
    """Writes each character two, three or four times, equally likely, with probability `strength`."""
    draws = uniform_draws(len(text), seed)
    times = (1 if draw >= strength else 2 + int(draw / strength * (_MOST_REPEATS - 1)) for draw in draws)
    return "".join(character * count for character, count in zip(text, times, strict=True))


def random_case(text: str, strength: float, seed: Seed) -> str:
    """Changes the case of each character with probability `strength`; at 0.5 all cases are equally likely."""
    draws = uniform_draws(len(text), seed)
    return "".join(character.swapcase() if draw < strength else character
                   for character, draw in zip(text, draws, strict=True))  # fmt: skip


def swap(text: str, strength: float, seed: Seed) -> str:
    """Swaps each character with the next with probability `strength`, unless it was just swapped."""
    characters, draws = list(text), uniform_draws(len(text), seed)
    place = 0
    while place < len(characters) - 1:
        if draws[place] < strength:
            characters[place : place + 2] = characters[place + 1], characters[place]
            place += 1
        place += 1
    return "".join(characters)


def upper_case(text: str, strength: float, seed: Seed) -> str:
    """Writes each word in upper case with probability `strength`; a word ends at white space."""
    return _on_words(text, strength, seed, str.upper)


def antspeak(text: str, strength: float, seed: Seed) -> str:
    """Writes each word in upper case with a space after every character with probability `strength`."""
    return _on_words(text, strength, seed, lambda word: "".join(f"{character} " for character in word.upper()))


def _on_words(text: str, strength: float, seed: Seed, change: Callable[[str], str]) -> str:
    words = len(_WORD.findall(text))
    draws = iter(uniform_draws(words, seed))
    return _WORD.sub(lambda word: change(word[0]) if next(draws) < strength else word[0], text)


@dataclass(frozen=True)
class NoiseKind:
    """A kind of noise and the strengths at which it is tried; `strengths[1]` is the one of a quick suite."""

    apply: CharacterNoise
    strengths: tuple[float, float, float]


NOISE_KINDS: Mapping[str, NoiseKind] = MappingProxyType(
    {
        "drop": NoiseKind(drop, (0.05, 0.1, 0.2)),
        "repeat": NoiseKind(repeat, (0.05, 0.1, 0.2)),
        "random case": NoiseKind(random_case, (0.1, 0.25, 0.5)),
        "swap": NoiseKind(swap, (0.05, 0.1, 0.2)),
        "upper case": NoiseKind(upper_case, (0.25, 0.5, 1.0)),
        "antspeak": NoiseKind(antspeak, (0.25, 0.5, 1.0)),
    }
)


def noised(data: bytes, kind: str, strength: float, seed: Seed) -> bytes:
    """`data` with one kind of noise on its characters; bytes that are no UTF-8 count as one character each.

    kind: a name in `NOISE_KINDS`.
    strength: a probability, see the function of the kind.
    seed: one non-negative integer or several, such as a seed and the number of a piece.
    """
    text = data.decode("utf-8", "surrogateescape")
    return NOISE_KINDS[kind].apply(text, strength, seed).encode("utf-8", "surrogateescape")
