"""Noise on bytes: what each kind keeps, and that it never changes."""

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeblt.measure.noise import NOISES, RATE, doubled_bytes, dropped_bytes, random_case, swapped_bytes
from edgeblt.measure.reference import Text, with_noise
from edgeblt.measure.texts import held_out_text

LITERAL = b"The quick brown fox jumps over the lazy dog; \xc3\xa4\x00\xff 0123456789 and again."
SEEDS = st.integers(0, 1 << 40)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("random case", b"tHE quick bRoWn foX JUmps over THe LAzy dOg; \xc3\xa4\x00\xff 0123456789 ANd aGaIN."),
        ("dropped bytes", b"Thquick bon fox umps over the lazy dog; \xc3\xa4\x00\xff 0123456789 and again."),
        ("doubled bytes", b"Thee  quick brrowwn fox jjumps over the lazy dog; \xc3\xa4\x00\xff 0123456789 and again."),
        ("swapped bytes", b"Th equick bornw fox ujmps over the lazy dog; \xc3\xa4\x00\xff 0123456789 and again."),
    ],
)
def test_literal_bytes(name: str, expected: bytes) -> None:
    assert NOISES[name](LITERAL) == NOISES[name](LITERAL, seed=0) == expected


def test_the_registry_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        NOISES["none"] = random_case  # type: ignore[index]
    assert list(NOISES) == ["random case", "dropped bytes", "doubled bytes", "swapped bytes"]


@given(data=st.binary(), seed=SEEDS)
def test_random_case_changes_nothing_but_the_case_of_letters(data: bytes, seed: int) -> None:
    noised = random_case(data, seed)
    assert noised.lower() == data.lower()
    assert random_case(noised, seed) == random_case(data.lower(), seed) == noised


@given(data=st.binary(), seed=SEEDS)
def test_dropping_keeps_the_order(data: bytes, seed: int) -> None:
    noised = dropped_bytes(data, seed)
    rest = iter(data)
    assert all(byte in rest for byte in noised)  # a subsequence
    assert bool(noised) == bool(data)


@given(data=st.binary() | st.binary().map(lambda data: bytes(byte & 1 for byte in data)), seed=SEEDS)
def test_doubling_lengthens_runs_of_equal_bytes(data: bytes, seed: int) -> None:
    before, after = runs(data), runs(doubled_bytes(data, seed))
    assert [byte for byte, _ in before] == [byte for byte, _ in after]
    assert all(old <= new <= 2 * old for (_, old), (_, new) in zip(before, after, strict=True))


def runs(data: bytes) -> list[tuple[int, int]]:
    """Each stretch of one byte, and how long it is."""
    return [(byte, len(list(same))) for byte, same in itertools.groupby(data)]


@given(data=st.binary(), seed=SEEDS)
def test_swapping_moves_bytes_by_one_place(data: bytes, seed: int) -> None:
    noised = swapped_bytes(data, seed)
    assert Counter(noised) == Counter(data)
    assert swapped_bytes(noised, seed) == data  # the same places again
    for place, byte in enumerate(noised):
        assert byte in data[max(place - 1, 0) : place + 2]


def test_the_rate() -> None:
    """Of 100,000 different neighbours, within six standard deviations; a swap makes the next place unlikely to."""
    data = bytes(range(250)) * 400
    spread = 6 * (RATE * (1 - RATE) / len(data)) ** 0.5
    assert abs(1 - len(dropped_bytes(data)) / len(data) - RATE) < spread
    assert abs(len(doubled_bytes(data)) / len(data) - 1 - RATE) < spread
    moved = sum(a != b for a, b in zip(swapped_bytes(data), data, strict=True)) / len(data)
    assert abs(moved - 2 * RATE / (1 + RATE)) < 4 * spread
    upper = sum(chr(letter).isupper() for letter in random_case(b"aZ" * 50_000)) / 100_000
    assert abs(upper - 0.5) < 6 * 0.5 / len(data) ** 0.5


def test_nothing_stays_nothing() -> None:
    for noise in NOISES.values():
        assert noise(b"") == b""
    lost = [seed for seed in range(200) if dropped_bytes(b"ab", seed) != b"ab"]
    assert lost and all(dropped_bytes(b"a", seed) == b"a" for seed in range(200))


def test_variants_of_texts() -> None:
    russian = held_out_text("russian")
    texts = {text.name: text.data for text in with_noise([Text("prose", LITERAL), Text("russian", russian)])}
    assert list(texts) == [
        *("prose", "prose, random case", "prose, dropped bytes", "prose, doubled bytes", "prose, swapped bytes"),
        *("russian", "russian, dropped bytes", "russian, doubled bytes", "russian, swapped bytes"),  # no ASCII letter
    ]
    assert list(texts.values())[:5] == [LITERAL, *(noise(LITERAL) for noise in NOISES.values())]
    assert texts["russian, swapped bytes"] == swapped_bytes(russian)
