"""Noise on characters and probes of spelling, by hand; what a suite scores, by an oracle that knows the answers."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeblt.errors import EdgebltError
from edgeblt.evaluation import robust_noise
from edgeblt.evaluation.robust_noise import NOISE_KINDS, noised
from edgeblt.evaluation.robust_probes import PROBE_KINDS, Probe, spelling_probes, words_of
from edgeblt.evaluation.robust_suite import CLEAN, EVERY_NOISE, EVERY_PROBE, RobustSuite, answered, cut_pieces
from edgeblt.evaluation.suite import make_suite
from edgeblt.evaluation.text_scorer import Advance, Question
from edgeblt.measure.reference import Text
from edgeblt.measure.texts import held_out_text

LITERAL = "The quick Fox, größer als 3 最高 \udcff"  # the last is a byte that is no UTF-8
WORDS = ("there", "größer", "yellow", "abcdefgh", "running", "другая", "apples", "orange", "purple", "silver")
STRENGTHS = st.floats(0, 1)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=60)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [  # draws 0.05, 0.15, .. 0.95 and again, at a strength of 0.3: the first three of every ten characters change
        ("drop", " quick , größels 3 最高"),
        ("repeat", "TThhheeee quick FFoooxxxx, größerr   aaaals 3 最高  \udcff\udcff\udcff"),
        ("random case", "tHE quick fOX, größeR Als 3 最高 \udcff"),
        ("swap", "hT equick oF,x größe rlas 3 最高\udcff "),
    ],
)
def test_noise_by_hand(kind: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robust_noise, "uniform_draws", lambda count, seed: (np.arange(count) % 10 + 0.5) / 10)
    assert NOISE_KINDS[kind].apply(LITERAL, 0.3, 0) == expected


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("upper case", "THE QUICK Fox, größer als 3 最高 \udcff"),
        ("antspeak", "T H E  Q U I C K  Fox, größer als 3 最高 \udcff"),
    ],
)  # fmt: skip
def test_noise_on_words_by_hand(kind: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robust_noise, "uniform_draws", lambda count, seed: np.arange(count) / 10)
    assert NOISE_KINDS[kind].apply(LITERAL, 0.2, 0) == expected
    everything = NOISE_KINDS[kind].apply("größer\n最高", 1.0, 0)
    assert everything == {"upper case": "GRÖSSER\n最高", "antspeak": "G R Ö S S E R \n最 高 "}[kind]


@given(text=TEXTS, strength=STRENGTHS, seed=st.integers(0, 1 << 40))
@settings(max_examples=40)
def test_what_each_noise_keeps(text: str, strength: float, seed: int) -> None:
    by_kind = {kind: noise.apply(text, strength, seed) for kind, noise in NOISE_KINDS.items()}
    rest = iter(text)
    assert all(character in rest for character in by_kind["drop"]) and bool(by_kind["drop"]) == bool(text)
    assert Counter(by_kind["swap"]) == Counter(text)
    assert len(text) <= len(by_kind["repeat"]) <= 4 * len(text)
    assert [c for c, _ in itertools.groupby(by_kind["repeat"])] == [c for c, _ in itertools.groupby(text)]
    assert "".join(by_kind["antspeak"].split()).upper() == "".join(text.split()).upper()
    assert by_kind["upper case"].upper() == text.upper()
    for kind, noise in NOISE_KINDS.items():
        assert noise.apply(text, strength, seed) == by_kind[kind]
        assert noise.apply(text, 0.0, seed) == text


@given(data=st.binary(max_size=80), seed=st.integers(0, 9))
@settings(max_examples=40)
def test_noise_takes_any_bytes(data: bytes, seed: int) -> None:
    for kind in NOISE_KINDS:
        assert noised(data, kind, 0.0, seed) == data
        noised(data, kind, 0.5, (seed, 1))


def test_the_strengths() -> None:
    """Shares of 20,000 different neighbours that change, within six standard deviations."""
    text = "aBcDeFgHiJ" * 2000
    spread = 6 * (0.1 * 0.9 / len(text)) ** 0.5
    assert abs(1 - len(NOISE_KINDS["drop"].apply(text, 0.1, 0)) / len(text) - 0.1) < spread
    changed = NOISE_KINDS["random case"].apply(text, 0.1, 0)
    assert abs(sum(a != b for a, b in zip(text, changed, strict=True)) / len(text) - 0.1) < spread
    longer = len(NOISE_KINDS["repeat"].apply(text, 0.1, 0)) / len(text) - 1
    assert abs(longer - 0.1 * 2) < 3 * spread  # twice more on average


# Probes.


def answer(question: str) -> str:
    """What the last line of a prompt asks for, worked out from its words alone."""
    kind, *parts = question.replace('"', " ").split()
    if kind == "The":  # The word X is spelled:
        return " ".join(parts[1])
    if kind == "Put":  # Put A after B in X:
        added, _, place, _, word = parts[:-1]
        return word.replace(place, place + added)
    if kind == "Delete":  # Delete A from X:
        return parts[2].replace(parts[0], "")
    if kind == "Replace":  # Replace A with B in X:
        return parts[4].replace(parts[0], parts[2])
    first, _, second, _, word = parts[:-1]  # Swap A and B in X:
    return word.translate(str.maketrans(first + second, second + first))


@pytest.mark.parametrize("kind", PROBE_KINDS)
@given(seed=st.integers(0, 1 << 40))
@settings(max_examples=25)
def test_probes_are_right_and_fair(kind: str, seed: int) -> None:
    probes = spelling_probes(WORDS, kind, 4, (seed,))
    assert probes and probes == spelling_probes(WORDS, kind, 4, (seed,))
    for probe in probes:
        right, wrong = probe.right.decode(), probe.wrong.decode()
        assert right != wrong and len(probe.right) == len(probe.wrong) and right.endswith("\n") and wrong.endswith("\n")
        *examples, question = probe.prompt.decode().split("\n")
        lines = [*examples, question + right.rstrip("\n")]
        assert len(lines) == 3
        for line in lines:
            asked, _, said = line.rpartition(": ")
            if kind == "contains":
                word = asked.split('"')[1]
                assert said in word and wrong.strip() not in question.split('"')[1]
            else:
                assert said == answer(f"{asked}:")
        if kind != "contains":
            assert wrong.strip() != answer(question)


def test_a_probe_by_hand() -> None:
    """All that its question leaves open are the letters that are drawn."""
    (probe,) = spelling_probes(("abcd", "efgh", "ijkl"), "spelling", 1, (0,))
    assert probe == Probe("spelling", probe.prompt, probe.right, probe.wrong)
    word = probe.right.decode().replace(" ", "").strip()
    assert probe.prompt.decode().endswith(f'The word "{word}" is spelled: ')
    letters = probe.right.decode().split()
    swaps = [[*letters[:n], letters[n + 1], letters[n], *letters[n + 2 :]] for n in range(3)]
    assert probe.wrong.decode().split() in swaps


def test_words_of_a_text() -> None:
    data = "The Yellow yellow cat, aaaa b2 größer; x_y another_one неотъемлемости людей 最高".encode() + b"\xff"
    assert words_of(data) == ("yellow", "größer", "another", "людей")
    assert spelling_probes(("there",), "swap", 5, (0,)) == []  # examples come first


# The suite.


class Oracle:
    """Gives every byte 2 bits, half a bit more where a text has a letter in upper case; knows every right answer."""

    def __init__(self, suite: RobustSuite, wrongly: int = 0) -> None:
        self._right = {probe.prompt + probe.right for _, probe in suite._probes[wrongly:]}

    def score(self, texts: Sequence[bytes], advance: Advance) -> list[NDArray[np.float64]]:
        return [self._logprobs(text) for text in texts]

    def answers(self, text: bytes, questions: Sequence[Question], advance: Advance) -> list[list[float]]:
        raise AssertionError("no suite of noise asks questions")

    def _logprobs(self, text: bytes) -> NDArray[np.float64]:
        bits = 2.0 + 0.5 * (text.decode("utf-8", "ignore").lower() != text.decode("utf-8", "ignore"))
        return np.full(len(text), -math.log(2) * (bits - (text in self._right)))


def test_what_the_suite_computes() -> None:
    texts = [Text("lower", b"the quick brown fox jumps over a lazy dog and runs away. " * 30)]
    suite = RobustSuite(texts, False, 0)
    values = suite.values(Oracle(suite), lambda count: None)
    assert len(values) == len(suite.units) == len(suite.weights)
    found = {
        (figure.name, figure.text): values[figure.items].sum() / suite.weights[figure.items].sum()
        for figure in suite.figures
    }
    assert found[CLEAN, ""] == found[CLEAN, "lower"] == pytest.approx(2.0)
    assert found["drop 10%", ""] == found["swap 20%", ""] == pytest.approx(2.0)
    assert found["upper case 100%", ""] == found["antspeak 100%", ""] == pytest.approx(2.5)
    assert 2 < found[EVERY_NOISE, "lower"] < 2.5
    assert found[EVERY_PROBE, ""] == 1.0
    probes = len(suite._probes)
    one_wrong = suite.values(Oracle(suite, 1), lambda count: None)
    (every,) = [figure for figure in suite.figures if (figure.name, figure.text) == (EVERY_PROBE, "")]
    assert one_wrong[every.items].sum() == probes - 1 + 0.5  # it says that both are as likely
    clean = next(figure for figure in suite.figures if figure.name == CLEAN)
    noise = next(figure for figure in suite.figures if figure.name == EVERY_NOISE)
    assert set(suite.units[clean.items]) == set(suite.units[noise.items])  # a piece and its noise are one unit


def test_noise_that_changes_nothing_is_left_out() -> None:
    suite = RobustSuite([Text("russian", held_out_text("japanese"))], True, 0)
    names = {figure.name: len(figure.items) for figure in suite.figures}
    assert names["random case"] == names["upper case"] == 0 and names["drop"] > 0


def test_answered() -> None:
    assert [answered(margin) for margin in (0.1, 0.0, -0.1)] == [1.0, 0.5, 0.0]
    assert math.isnan(answered(math.nan))


@given(data=st.binary(max_size=200) | TEXTS.map(str.encode))
def test_pieces(data: bytes) -> None:
    pieces = cut_pieces(data, 16)
    assert b"".join(pieces) == data[: sum(map(len, pieces))] and len(data) - sum(map(len, pieces)) < 8
    assert all(8 <= len(piece) <= 16 for piece in pieces[1:])
    with_characters = "äöü最高".encode() * 9
    assert "".join(piece.decode() for piece in cut_pieces(with_characters, 16)) in with_characters.decode()


def test_texts_that_give_no_suite() -> None:
    with pytest.raises(EdgebltError, match="give 3 pieces of 256 bytes; give 1,024 bytes or more"):
        make_suite("robust", [Text("short", b"x" * 768)])
    with pytest.raises(EdgebltError, match="there is no suite 'other'; use one of robust, long"):
        make_suite("other", [])
    with pytest.raises(EdgebltError, match="the text 'a' is given twice"):
        make_suite("robust", [Text("a", b"x" * 9999), Text("a", b"y" * 9999)])
    with pytest.raises(EdgebltError, match="hold 1,000 bytes together; give 1,024 bytes or more"):
        make_suite("long", [Text("short", b"x" * 1000)])
