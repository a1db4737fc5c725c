"""Rules that depend on the text: the repetition penalty against a search, UTF-8 against Python's decoder."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conftest import Exported
from edgeblt.decoding.repetition import RepetitionRule
from edgeblt.decoding.settings import GenerationSettings, text_sampler
from edgeblt.decoding.utf8 import NEXT, Utf8Rule, tail_state
from edgeblt.errors import EdgebltError
from edgeblt.ids import EOS, OFFSET, VOCAB_SIZE
from edgeblt.names import Name
from tiny_models import BLT_DRAFTS

FEW = st.binary(max_size=40).map(lambda data: bytes(byte % 3 + 97 for byte in data))


def after_breakers(text: bytes, breakers: tuple[bytes, ...]) -> int:
    """Number of bytes at the end of `text` after the last breaker."""
    ends = (end for end in range(len(text), 0, -1) if any(text[:end].endswith(breaker) for breaker in breakers))
    return len(text) - next(ends, 0)


def penalties(text: bytes, multiplier: float, base: float, allowed: int, most: int) -> dict[int, float]:
    """Nats by byte, from every earlier place in the text, for passages of `most` bytes at most."""
    longest: dict[int, int] = {}
    for place in range(1, len(text)):
        length = 0
        while length < min(place, most) and text[place - 1 - length] == text[-1 - length]:
            length += 1
        if length >= allowed:
            longest[text[place]] = max(longest.get(text[place], 0), length)
    return {byte: multiplier * base ** (length - allowed) for byte, length in longest.items()}


@settings(deadline=None, max_examples=300)
@given(FEW, FEW, st.integers(1, 4), st.integers(1, 50), st.sets(FEW.filter(len), max_size=3).map(tuple))
@example(b"abcabca", b"bcab", 2, 50, (b"cab", b"a"))
def test_repetition_against_a_search(
    prompt: bytes, text: bytes, allowed: int, reach: int, breakers: tuple[bytes, ...]
) -> None:
    breakers = tuple(breaker[:3] for breaker in breakers)
    rule = RepetitionRule(0.8, 1.5, allowed, reach, breakers, prompt)
    for count in range(len(text) + 1):
        logits = np.zeros(VOCAB_SIZE)
        rule.fork().adjust(logits)
        expected = np.zeros(VOCAB_SIZE)
        whole = prompt + text[:count]
        most = after_breakers(whole, breakers)
        for byte, nats in penalties(whole[-reach:], 0.8, 1.5, allowed, most).items():
            expected[byte + OFFSET] = -nats
        np.testing.assert_allclose(logits, expected, rtol=1e-12)
        if count < len(text):
            forked = rule.fork()
            rule.take(text[count] + OFFSET)
            forked.take(200)


def test_long_repetitions_stay_finite() -> None:
    rule = RepetitionRule(5.0, 1e300, 1, 2000, (), b"a" * 3000)
    logits = np.zeros(VOCAB_SIZE)
    rule.adjust(logits)
    assert logits[ord("a") + OFFSET] == -1e6 and np.count_nonzero(logits) == 1


def test_loops_are_left(exported: Callable[[int], Exported]) -> None:
    """A greedy text of a small model goes round in a loop; with the penalty it does not."""
    model = exported(10).model
    chosen = GenerationSettings(max_new_bytes=400, temperature=0.0, ignore_eos=True)
    text = model.generate(b"once", settings=chosen)
    looped = [size for size in range(1, 100) if text[-150:-size] == text[-150 + size :]]
    assert looped
    freed = model.generate(b"once", settings=chosen, dry_multiplier=2.0, dry_allowed_length=4, dry_base=1.5)
    assert not [size for size in range(1, 100) if freed[-150:-size] == freed[-150 + size :]]


def test_no_passage_reaches_across_a_breaker() -> None:
    """By default those of llama.cpp; a breaker itself may be penalized."""
    logits = np.zeros(VOCAB_SIZE, np.float32)

    def penalized(text: bytes, **changes: Any) -> dict[str, float]:
        sampling = GenerationSettings(temperature=1.0, dry_multiplier=1.0, dry_base=1.0, ignore_eos=True, **changes)
        found = text_sampler(sampling, [EOS], text).distribution(logits)[OFFSET : OFFSET + 256]
        nats = np.log(found.max() / found)
        return {chr(byte): round(float(nats[byte]), 9) for byte in np.flatnonzero(nats > 1e-9)}

    line = b"eleven byte"
    assert penalized(line + b"s\n" + line + b"s") == {"\n": 1.0}  # twelve bytes
    assert penalized(line + b"\n" + line) == {}
    assert penalized(b"x" + line + b"\nx" + line, dry_sequence_breakers="b") == {}
    for breaker in b'\n:"*':
        twice = (line + bytes([breaker])) * 2
        assert penalized(twice) == {} and penalized(twice, dry_sequence_breakers=()) == {"e": 1.0}
        assert penalized(twice, dry_sequence_breakers=["é", bytes([breaker])]) == {}
    two_byte = (line + "é".encode()) * 2
    assert penalized(two_byte) == {"e": 1.0} and penalized(two_byte, dry_sequence_breakers="é") == {}


REST = (b"", *(bytes([byte]) + b"\x80" * more for byte in (0x80, 0x90, 0xA0) for more in range(3)))


def is_prefix(data: bytes) -> bool:
    """Whether `data` can be completed to text that Python decodes."""
    return any((data + rest).decode(errors="ignore").encode() == data + rest for rest in REST)


# A prefix that reaches each state of the table.
PREFIXES = (b"", b"\xc3", b"\xe3", b"\xf1", b"\xe0", b"\xed", b"\xf0", b"\xf4")


@pytest.mark.parametrize("state", range(8))
def test_which_bytes_may_follow(state: int) -> None:
    prefix = PREFIXES[state]
    assert tail_state(b"ab" + prefix) == tail_state("é".encode() + prefix) == state
    for byte in range(256):
        assert (NEXT[state][byte] >= 0) == is_prefix(prefix + bytes([byte]))
    logits = np.zeros(VOCAB_SIZE)
    Utf8Rule(prefix, [EOS]).adjust(logits)
    assert [logits[byte + OFFSET] == 0 for byte in range(256)] == [
        is_prefix(prefix + bytes([byte])) for byte in range(256)
    ]
    assert (logits[EOS] == 0) == (state == 0)


@given(st.binary(max_size=6))
def test_states_of_any_prompt(data: bytes) -> None:
    """Only an incomplete character at the end counts."""
    ends = [data[-size:] for size in range(1, min(len(data), 3) + 1)]
    assert (tail_state(data) != 0) == any(is_prefix(end) and not end.decode(errors="ignore") for end in ends)


@pytest.mark.parametrize("draft", BLT_DRAFTS)
def test_texts_are_utf8(draft: str, exported: Callable[[int], Exported]) -> None:
    """Of a random model, whatever ends them; drafts change nothing."""
    model = exported(10).model
    for seed, size in enumerate(range(1, 40, 3)):
        chosen = GenerationSettings(max_new_bytes=size, temperature=2.0, utf8=True, seed=seed)
        stream = model.stream("é", settings=chosen, draft=Name(draft), stop="é")
        pieces = [piece.decode() for piece in stream]
        assert all(len(piece) == 1 for piece in pieces)
        assert "".join(pieces).encode() == model.generate("é", settings=chosen, draft="none", stop="é")
        if stream.end and stream.end.reason == "length":
            assert size - 4 < len("".join(pieces).encode()) <= size
    half = model.generate("é".encode()[:1], 9, 2.0, seed=1, utf8=True)
    assert ("é".encode()[:1] + half).decode()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"dry_multiplier": -1}, "dry_multiplier is -1; it must be a number of at least 0"),
        ({"dry_base": 0.5}, "dry_base is 0.5; it must be a number of at least 1"),
        ({"dry_allowed_length": 0}, "dry_allowed_length is 0; it must be at least 1"),
        ({"dry_range": 2_000_000}, "dry_range is 2000000; it must be at most 1,000,000"),
        (
            {"dry_sequence_breakers": 3},
            "dry_sequence_breakers is 3; it must be bytes or str, or several of them",
        ),
        ({"dry_sequence_breakers": ["\n", ""]}, "a sequence breaker is empty; give at least one byte"),
        ({"dry_sequence_breakers": [3]}, "a sequence breaker is 3; it must be bytes or str"),
        ({"utf8": "yes"}, "utf8 is 'yes'; it must be True or False"),
    ],
)
def test_what_is_no_rule(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(EdgebltError) as refused:
        GenerationSettings(**arguments)
    assert str(refused.value) == sentence


def test_the_penalty_comes_before_temperature_and_cuts() -> None:
    """Biases, then rules, then temperature: exact on a text whose next byte repeats a passage of six bytes."""
    logits = np.random.default_rng(1).normal(size=VOCAB_SIZE).astype(np.float32)
    chosen = GenerationSettings(
        temperature=0.5, logit_bias={"x": 1.0}, dry_multiplier=0.7, dry_base=1.3, dry_allowed_length=4, ignore_eos=True
    )
    found = text_sampler(chosen, [EOS], b"abcdefx.abcdef").distribution(logits)
    expected = logits.astype(np.float64)
    expected[ord("x") + OFFSET] += 1.0 - 0.7 * 1.3**2
    expected[:OFFSET] = -np.inf
    weights = np.exp(expected / 0.5)
    np.testing.assert_allclose(found, weights / weights.sum(), rtol=1e-9)
